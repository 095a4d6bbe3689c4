"""How full each class and each cluster is, before and after selection."""

from typing import Any

import numpy as np

from launch.report import charts
from launch.report.charts import WIDTH
from launch.report.sections.section import Section
from launch.report.view import View, label_name
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.evaluation import Evaluation
from pipeline.artifacts.selection import SelectedRows


def context(view: View) -> dict[str, Any]:
    """`balance`: a card for each round."""
    return {"balance": view.attempt(balance, view) or []}


def balance(view: View) -> list[dict[str, Any]]:
    """For each round the charts of its classes and of the clusters of its levels."""
    cards = []
    for number in view.rounds(Clusters, SelectedRows):
        statistics = view.statistics(SelectedRows, number)
        clusters = view.run.by_round(Clusters)[number]
        classes = view.statistics(Evaluation, number).get("class_balance")
        levels = list(statistics["balance"].values())
        columns = min(len(levels) + (classes is not None), 3)
        width = (WIDTH - 32 * (columns - 1)) // columns if columns > 1 else 620
        drawn = []
        if classes:
            pool, chosen = np.array(classes["pool"]), np.array(classes["selected"])
            order = np.argsort(-pool, kind="stable")
            names = [label_name(classes["classes"][index]) for index in order]
            chart = charts.bars(names, pool[order], chosen[order], width)
            drawn.append({"of": "classes", "num": len(names), "chart": chart, **_tv(classes)})
        hierarchy = clusters.hierarchy()
        selected = view.selected_sizes(hierarchy, view.selected(number))
        for depth, (level, measured) in enumerate(zip(hierarchy.levels, levels, strict=True), start=1):
            chart = charts.curves(np.asarray(level.sizes), selected[depth - 1], width, "clusters, largest first")
            card = {"of": f"level-{depth} clusters", "num": level.num_clusters, "chart": chart, **_tv(measured)}
            drawn.append(card | {"covered": measured.get("covered")})
        known = {name: statistics.get(name) for name in ("pool", "selected", "vendi", "distance_to_selected")}
        cards.append({"round": number, "charts": drawn, "columns": columns, **known})
    return cards


def _tv(measured: dict[str, Any]) -> dict[str, float]:
    return {name: float(measured[name]) for name in ("tv_pool", "tv_selected")}


SECTION = Section("balance", "Balance", "sections/balance.html.j2", context)
