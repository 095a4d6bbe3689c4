"""How full each class and each cluster is, before and after selection."""

from typing import Any

import numpy as np
from markupsafe import Markup

from launch.report import charts
from launch.report.charts import WIDTH
from launch.report.sections.section import Section
from launch.report.view import Evenness, View, label_name
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.evaluation import Evaluation
from pipeline.artifacts.selection import SelectedRows

_MAX_COLUMNS, _GAP, _SINGLE_WIDTH = 3, 32, 620


def context(view: View) -> dict[str, Any]:
    """`balance`: a card for each round."""
    cards = (view.attempt(card, view, number) for number in view.rounds(Clusters, SelectedRows))
    return {"balance": [card for card in cards if card]}


def card(view: View, number: int) -> dict[str, Any]:
    """The charts of the classes and of the clusters of each level of one round."""
    statistics, evenness = view.statistics(SelectedRows, number), view.cluster_evenness(number)
    hierarchy = view.run.by_round(Clusters)[number].hierarchy()
    selected = view.selected_sizes(hierarchy, view.selected(number))
    classes = view.class_evenness(number)
    columns = min(len(evenness) + (classes is not None), _MAX_COLUMNS)
    width = (WIDTH - _GAP * (columns - 1)) // columns if columns > 1 else _SINGLE_WIDTH
    figures = []
    if classes:
        counts = view.statistics(Evaluation, number)["class_balance"]
        figures.append(_figure(classes, len(counts["classes"]), _class_chart(counts, width)))
    for level, sizes, measured in zip(hierarchy.levels, selected, evenness, strict=True):
        chart = charts.curves(np.asarray(level.sizes), sizes, width, "clusters, largest first")
        figures.append(_figure(measured, level.num_clusters, chart))
    spread = {name: statistics.get(name) for name in ("vendi", "distance_to_selected")}
    return {"round": number, "figures": figures, "columns": columns, **spread}


def _figure(evenness: Evenness, num_groups: int, chart: Markup) -> dict[str, Any]:
    return {"evenness": evenness, "num": num_groups, "chart": chart}


def _class_chart(counts: dict[str, Any], width: int) -> Markup:
    """Bars of the classes, the largest of the pool first."""
    pool, selected = np.array(counts["pool"]), np.array(counts["selected"])
    order = np.argsort(-pool, kind="stable")
    return charts.bars([label_name(counts["classes"][index]) for index in order], pool[order], selected[order], width)


SECTION = Section("balance", "Balance", "sections/balance.html.j2", context)
