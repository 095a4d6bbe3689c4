"""Curves: scores by round, scores and losses by step."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from launch.report import charts
from launch.report.charts import WIDTH, Series, short
from launch.report.sections.section import Section
from launch.report.view import View, round_name
from pipeline.artifacts.training import Training, evaluations, metrics

_THIRD = (WIDTH - 2 * 32) // 3
_MAX_LOSS_LINES, _MAX_LOSS_POINTS = 4000, 250
_ROUND_STYLES = 6
"""Classes of the style sheet that colour rounds: r0, r1, and so on."""


def context(view: View) -> dict[str, Any]:
    """`progress`, `evaluations` and `losses`, charts with their titles and series; and the name of the baseline."""
    return {
        "progress": scores_by_round(view),
        "evaluations": [
            *_by_step(view, "kNN while training", lambda directory: _scores(directory, "knn"), _percent),
            *_by_step(view, "RankMe while training", lambda directory: _scores(directory, "rankme"), short),
        ],
        "losses": _by_step(view, "Training loss", _losses, short),
        "baseline_name": view.baseline_name(),
    }


def _by_step(
    view: View, title: str, points: Callable[[Path], np.ndarray], show: Callable[[float], str]
) -> list[dict[str, Any]]:
    """A chart with a line a round of the `points` (P, 2) of its training, finished or not; none where there are no lines."""
    lines: list[Series] = []
    for number, directory in view.run.directories(Training).items():
        curve = view.attempt(points, directory)
        if curve is not None and len(curve) > 1:
            style = f"r{len(lines) % _ROUND_STYLES}"
            lines.append(Series(round_name(number), style, curve[:, 0].tolist(), curve[:, 1].tolist()))
    return [_figure(title, lines, charts.lines(lines, _THIRD, "step", show=show))] if lines else []


def _losses(directory: Path) -> np.ndarray:
    """(P, 2): steps and training losses, averaged over neighbouring steps where there are many."""
    points = np.array(list(_loss_lines(directory)), dtype=np.float64).reshape(-1, 2)
    bins = np.array_split(points, min(len(points), _MAX_LOSS_POINTS) or 1)
    return np.array([points.mean(axis=0) for points in bins if len(points)]).reshape(-1, 2)


def _loss_lines(directory: Path) -> Iterator[tuple[float, float]]:
    """Every so many lines of the metrics, a few thousand in all."""
    num_lines = sum(1 for _ in metrics(directory))
    stride = max(1, num_lines // _MAX_LOSS_LINES)
    for line in itertools.islice(metrics(directory), 0, None, stride):
        if np.isfinite(line["loss"]):
            yield line["step"], line["loss"]


def _scores(directory: Path, key: str) -> np.ndarray:
    """(P, 2): steps and a score of the encoder at that step."""
    points = [(line["step"], line[key]) for line in evaluations(directory) if key in line]
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def scores_by_round(view: View) -> list[dict[str, Any]]:
    """Scores by round, the baseline first; none with fewer than two encoders."""
    scores = {round_name(number): measured for number, measured in view.scores().items()}
    if baseline := view.baseline():
        scores = {"baseline": baseline, **scores}
    figures = []
    for title, keys, show in (
        ("Accuracy on test images", (("knn", "kNN", "sel"), ("linear", "linear probe", "r0")), _percent),
        ("Effective rank (RankMe)", (("rankme", "RankMe", "r1"),), _tenths),
    ):
        lines = [Series(name, style, *_known(key, list(scores.values()))) for key, name, style in keys]
        lines = [line for line in lines if line.x]
        if lines and len(scores) > 1:
            figures.append(_figure(title, lines, charts.dots(lines, list(scores), _THIRD, show)))
    return figures


def _known(key: str, scores: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    """The places and the values of one score where it was measured."""
    places = [place for place, measured in enumerate(scores) if key in measured]
    return list(map(float, places)), [round(scores[place][key], 6) for place in places]


def _figure(title: str, series: Sequence[Series], chart: str) -> dict[str, Any]:
    return {"title": title, "series": series, "chart": chart}


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _tenths(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


SECTION = Section("curves", "Curves", "sections/curves.html.j2", context)
