"""The head of the page: what came out in a sentence or two, and key figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from launch.report.view import View
from pipeline.artifacts.samples import Samples


def context(view: View, balance: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """`lead` and `tiles`, from the scores and from the cards of the balance."""
    return {"lead": lead(view, balance), "tiles": tiles(view, balance)}


def lead(view: View, balance: Sequence[dict[str, Any]]) -> str:
    """What came out, in a sentence or two."""
    if not any(step.manifest for step in view.run.steps):
        return "Nothing is finished yet. This page fills up as the stages of the run finish; write it again to see them."
    sentences = []
    scores = view.scores()
    trained = [(name, score) for name, score in scores if name != "baseline"]
    baseline = dict(scores).get("baseline")
    if trained and "knn" in trained[-1][1]:
        name, last = trained[-1]
        queries = f"{last['queries']:,} labelled test images"
        text = f"After {name}, the nearest neighbours in its features classify {last['knn']:.1%} of {queries} correctly"
        if baseline and "knn" in baseline:
            gain = 100 * (last["knn"] - baseline["knn"])
            side = "above" if gain >= 0 else "below"
            text += f", {abs(gain):.1f} points {side} {view.baseline_name()} ({baseline['knn']:.1%})"
        sentences.append(text + ".")
    elif trained:
        name, last = trained[-1]
        before = f", from {baseline['rankme']:.1f} for {view.baseline_name()}" if baseline else ""
        sentences.append(f"After {name} the features have an effective rank (RankMe) of {last['rankme']:.1f}{before}.")
    if balance:
        chart = balance[-1]["charts"][0]
        share = balance[-1]["selected"] / max(balance[-1]["pool"], 1)
        even = "more evenly" if chart["tv_selected"] < chart["tv_pool"] else "no more evenly"
        sentences.append(
            f"The last selection keeps {share:.0%} of the pool and covers its {chart['of']} {even}: their distance from an "
            f"even spread goes from {chart['tv_pool']:.2f} to {chart['tv_selected']:.2f}."
        )
    if not sentences:
        counts = view.statistics(Samples, None)
        sentences.append(f"{counts['pool']:,} samples are in the pool." if counts else "The first stage is finished.")
    return " ".join(sentences)


def tiles(view: View, balance: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Key figures: name, value, how it compares, and whether that is good (1), bad (-1) or neither (0)."""
    figures: list[dict[str, Any]] = []

    def add(name: str, value: str, note: str, tone: float = 0) -> None:
        figures.append({"name": name, "value": value, "note": note, "tone": int(np.sign(tone))})

    scores = view.scores()
    baseline = dict(scores).get("baseline", {})
    last = scores[-1][1] if scores else {}
    is_trained = bool(scores) and scores[-1][0] != "baseline"
    for key, name in (("knn", "kNN accuracy"), ("linear", "Linear probe")):
        if key in last and is_trained and key in baseline:
            gain = last[key] - baseline[key]
            chance = 2 * np.sqrt(last[key] * (1 - last[key]) / max(last["queries"], 1))  # two standard errors
            note = f"{100 * gain:+.1f} points from the baseline's {baseline[key]:.1%}"
            note += ", within chance" if abs(gain) < chance else ""
            add(name, f"{last[key]:.1%}", note, gain * (abs(gain) >= chance))
        elif key in last:
            add(name, f"{last[key]:.1%}", "of the baseline" if baseline else "")
    if "rankme" in last:
        note = f"{baseline['rankme']:.1f} of {baseline['dim']} in the baseline" if is_trained and baseline else "effective rank"
        add("RankMe", f"{last['rankme']:.1f}", f"of {last['dim']} dimensions; {note}")
    if balance:
        by_name = {chart["of"]: chart for chart in (balance[-1]["charts"][0], balance[-1]["charts"][-1])}
        for name, chart in by_name.items():
            note = f"TV; {chart['tv_pool']:.2f} in the pool"
            add(f"Unevenness, {name}", f"{chart['tv_selected']:.2f}", note, chart["tv_pool"] - chart["tv_selected"])
        add("Selected", f"{balance[-1]['selected']:,}", f"of {balance[-1]['pool']:,} in the pool")
    elif counts := view.statistics(Samples, None):
        add("In the pool", f"{counts['pool']:,}", f"of {counts['files']:,} files")
    return figures
