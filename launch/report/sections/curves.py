"""Curves: scores by round, scores and losses by step."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from launch.report import charts
from launch.report.charts import WIDTH, Series, short
from launch.report.sections.section import Section
from launch.report.view import View
from pipeline.artifacts.training import Training, evaluations, metrics

_THIRD = (WIDTH - 2 * 32) // 3
_MAX_LOSS_LINES, _MAX_LOSS_POINTS = 4000, 250


def context(view: View) -> dict[str, Any]:
    """`losses`, `evaluations`, `progress` and the name of the baseline."""
    return {
        "losses": view.attempt(losses, view),
        "evaluations": view.attempt(scores_by_step, view) or [],
        "progress": scores_by_round(view),
        "baseline_name": view.baseline_name(),
    }


def losses(view: View) -> dict[str, Any] | None:
    """Training loss by step, a line a round, also of a training that is not finished."""
    series: list[Series] = []
    for number, directory in view.run.directories(Training).items():
        points = np.array(list(_losses(directory)), dtype=np.float64).reshape(-1, 2)
        if len(points) > 1:
            bins = np.array_split(points, min(len(points), _MAX_LOSS_POINTS))
            means = np.array([part.mean(axis=0) for part in bins])
            style = f"r{len(series) % 6}"
            series.append(Series(f"round {number}", style, means[:, 0].tolist(), means[:, 1].tolist()))
    return {"chart": charts.lines(series, _THIRD, "step"), "series": series} if series else None


def _losses(directory: Path) -> Iterator[tuple[float, float]]:
    num_lines = sum(1 for _ in metrics(directory))
    stride = max(1, num_lines // _MAX_LOSS_LINES)
    for line in itertools.islice(metrics(directory), 0, None, stride):
        if np.isfinite(line["loss"]):
            yield line["step"], line["loss"]


def scores_by_step(view: View) -> list[dict[str, Any]]:
    """Scores of encoders while they train by step, a line a round, also of a training that is not finished."""
    figures = []
    for key, title, show in (("knn", "kNN while training", _percent), ("rankme", "RankMe while training", short)):
        series: list[Series] = []
        for number, directory in view.run.directories(Training).items():
            points = [(row["step"], row[key]) for row in evaluations(directory) if key in row]
            if len(points) > 1:
                steps, scores = zip(*points, strict=True)
                series.append(Series(f"round {number}", f"r{len(series) % 6}", steps, scores))
        if series:
            figures.append({"title": title, "series": series, "chart": charts.lines(series, _THIRD, "step", show=show)})
    return figures


def scores_by_round(view: View) -> list[dict[str, Any]]:
    """Scores by round, the baseline first."""
    scores = view.scores()
    names = [name for name, _ in scores]
    figures = []
    for title, keys, show in (
        ("Accuracy on test images", (("knn", "kNN", "sel"), ("linear", "linear probe", "r0")), _percent),
        ("Effective rank (RankMe)", (("rankme", "RankMe", "r1"),), _tenths),
    ):
        series: list[Series] = []
        for key, name, style in keys:
            have = [(place, s[key]) for place, (_, s) in enumerate(scores) if key in s]
            if have:
                series.append(Series(name, style, [x for x, _ in have], [round(y, 6) for _, y in have]))
        if series and len(names) > 1:
            figures.append({"title": title, "series": series, "chart": charts.dots(series, names, _THIRD, show)})
    return figures


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


def _tenths(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


SECTION = Section("curves", "Curves", "sections/curves.html.j2", context)
