"""The head of the page: what came out in a sentence or two, and key figures."""

from typing import Any

import numpy as np

from launch.report.sections.section import Section
from launch.report.view import Evenness, View, round_name
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows


def context(view: View) -> dict[str, Any]:
    """`lead` and `tiles`."""
    return {"lead": lead(view), "tiles": tiles(view)}


def lead(view: View) -> str:
    """What came out, in a sentence or two."""
    if not view.finished:
        return "Nothing is finished yet. This page fills up as the stages of the run finish; write it again to see them."
    sentences = [*_about_scores(view), *_about_selection(view)]
    if not sentences:
        counts = view.statistics(Samples, None)
        sentences.append(f"{counts['pool']:,} samples are in the pool." if counts else "The first stage is finished.")
    return " ".join(sentences)


def _about_scores(view: View) -> list[str]:
    """The scores of the newest encoder beside those of the baseline."""
    scores, baseline = view.scores(), view.baseline()
    if not scores:
        return []
    number, newest = list(scores.items())[-1]
    if "knn" not in newest:
        before = f", from {baseline['rankme']:.1f} for {view.baseline_name()}" if baseline else ""
        return [f"After {round_name(number)} the features have an effective rank (RankMe) of {newest['rankme']:.1f}{before}."]
    text = (
        f"After {round_name(number)}, the nearest neighbours in its features classify {newest['knn']:.1%} of "
        f"{newest['queries']:,} labelled test images correctly"
    )
    if "knn" in baseline:
        gain = 100 * (newest["knn"] - baseline["knn"])
        side = "above" if gain >= 0 else "below"
        text += f", {abs(gain):.1f} points {side} {view.baseline_name()} ({baseline['knn']:.1%})"
    return [text + "."]


def _about_selection(view: View) -> list[str]:
    """How much the newest selection keeps, and how evenly."""
    numbers = view.rounds(SelectedRows)
    if not numbers:
        return []
    counts, evenness = view.statistics(SelectedRows, numbers[-1]), _evenness(view, numbers[-1])[0]
    share = counts["selected"] / max(counts["pool"], 1)
    how = "more evenly" if evenness.tv_selected < evenness.tv_pool else "no more evenly"
    return [
        f"The last selection keeps {share:.0%} of the pool and covers its {evenness.groups} {how}: their distance from an even "
        f"spread goes from {evenness.tv_pool:.2f} to {evenness.tv_selected:.2f}."
    ]


def _evenness(view: View, number: int) -> list[Evenness]:
    """Unevenness of the classes, where they are known, and of the clusters of each level."""
    classes = view.class_evenness(number)
    return [*([classes] if classes else []), *view.cluster_evenness(number)]


def tiles(view: View) -> list[dict[str, Any]]:
    """Key figures: name, value, how it compares, and whether that is good (1), bad (-1) or neither (0)."""
    figures = _score_tiles(view)
    if numbers := view.rounds(SelectedRows):
        counts, evenness = view.statistics(SelectedRows, numbers[-1]), _evenness(view, numbers[-1])
        for groups in {groups.groups: groups for groups in (evenness[0], evenness[-1])}.values():
            note = f"TV; {groups.tv_pool:.2f} in the pool"
            name = f"Unevenness, {groups.groups}"
            figures.append(_tile(name, f"{groups.tv_selected:.2f}", note, groups.tv_pool - groups.tv_selected))
        figures.append(_tile("Selected", f"{counts['selected']:,}", f"of {counts['pool']:,} in the pool"))
    elif counts := view.statistics(Samples, None):
        figures.append(_tile("In the pool", f"{counts['pool']:,}", f"of {counts['files']:,} files"))
    return figures


def _score_tiles(view: View) -> list[dict[str, Any]]:
    """The scores of the newest encoder, or of the baseline while nothing is trained."""
    scores, baseline = list(view.scores().values()), view.baseline()
    newest = scores[-1] if scores else baseline
    figures = []
    for key, name in (("knn", "kNN accuracy"), ("linear", "Linear probe")):
        if key in newest and scores and key in baseline:
            gain = newest[key] - baseline[key]
            chance = 2 * np.sqrt(newest[key] * (1 - newest[key]) / max(newest["queries"], 1))  # two standard errors
            note = f"{100 * gain:+.1f} points from the baseline's {baseline[key]:.1%}"
            note += ", within chance" if abs(gain) < chance else ""
            figures.append(_tile(name, f"{newest[key]:.1%}", note, gain * (abs(gain) >= chance)))
        elif key in newest:
            figures.append(_tile(name, f"{newest[key]:.1%}", "of the baseline" if baseline else ""))
    if "rankme" in newest:
        before = f"{baseline['rankme']:.1f} of {baseline['dim']} in the baseline" if scores and baseline else "effective rank"
        figures.append(_tile("RankMe", f"{newest['rankme']:.1f}", f"of {newest['dim']} dimensions; {before}"))
    return figures


def _tile(name: str, value: str, note: str, tone: float = 0) -> dict[str, Any]:
    return {"name": name, "value": value, "note": note, "tone": int(np.sign(tone))}


SECTION = Section("summary", "Summary", "sections/summary.html.j2", context)
