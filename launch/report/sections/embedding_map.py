"""A map of the embeddings: the same samples in several rounds, near where their features are alike."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from curation.base import rng
from curation.base.errors import DataError
from launch.report import charts
from launch.report.charts import WIDTH
from launch.report.sections.section import Section
from launch.report.view import View, label_name
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.splits import POOL

_MAP_ROWS, _MAP_PICTURES = 2000, 500


def context(view: View) -> dict[str, Any]:
    """`map`; None if there are no rounds to show, or too few samples."""
    numbers = view.pictured_rounds()
    return {"map": view.attempt(embedding_map, view, view.samples, numbers) if view.samples and numbers else None}


def embedding_map(view: View, samples: Samples, numbers: Sequence[int]) -> dict[str, Any] | None:
    """t-SNE of the same samples in several rounds, turned so that they resemble each other; None of fewer than five."""
    row_ids = view.run.by_round(Clusters)[numbers[0]].row_ids()
    num = len(row_ids)
    if num < 5:
        return None
    rows = rng.permute(rng.key(0, "map"), np.arange(min(_MAP_ROWS, num)), num)
    pictures = view.pictures.of(row_ids[np.sort(rows[:_MAP_PICTURES])], POOL)
    rows = np.sort(rows)
    ids = row_ids[rows]
    sources, classes = samples.names(ids, POOL)
    labels = [label_name(name) for name in classes]
    has_labels = any(label != "no label" for label in labels)
    names, kind = np.unique(labels, return_inverse=True)
    by_count = np.argsort(-np.bincount(kind), kind="stable")
    rank = np.argsort(by_count)
    colours = charts.palette(len(names))
    maps: list[dict[str, Any]] = []
    before: np.ndarray | None = None
    for number in numbers:
        hierarchy = view.run.by_round(Clusters)[number].hierarchy()
        cluster = hierarchy.levels[0].assignment[rows]
        for upper in hierarchy.levels[1:]:
            cluster = upper.assignment[cluster]
        source = view.run.by_round(Embeddings)[number].pool(normalize=True)
        features = source.take(rows).astype(np.float32)
        if not np.isfinite(features).all():
            raise DataError(f"The embeddings of round {number} have values that are not finite. Embed that round again.")
        placed = before = _tsne(features, before)
        wheel = colours if has_labels else charts.palette(hierarchy.levels[-1].num_clusters)
        paint = [wheel[i] for i in (rank[kind] if has_labels else cluster)]
        chosen = view.selected(number)[rows] if number in view.rounds(SelectedRows) else np.zeros(len(rows), dtype=bool)
        size = 700 if len(numbers) == 1 else (WIDTH + 50 - 16 * (len(numbers) - 1)) // len(numbers) - 50
        unit = (placed - placed.min(axis=0)) / np.maximum(np.ptp(placed, axis=0), 1e-9)
        chart = charts.scatter(unit, paint, chosen, size)
        maps.append({"round": number, "chart": chart, "on": chosen.astype(int).tolist(), "clusters": cluster.tolist()})
    legend = [(str(names[i]), colours[place]) for place, i in enumerate(by_count)] if has_labels else []
    return {
        "maps": maps,
        "legend": legend if len(legend) <= 24 else [],
        "has_labels": has_labels,
        "rows": len(rows),
        "pool": num,
        "pictures": len(pictures),
        "data": {
            "row": ids.tolist(),
            "picture": [pictures.get(row, -1) for row in ids.tolist()],
            "class": labels if has_labels else None,
            "name": sources,
            "on": [drawn["on"] for drawn in maps],
            "clusters": [drawn["clusters"] for drawn in maps],
        },
    }


def _tsne(features: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """(N, 2): close rows close together; rotated or mirrored towards `reference`, which changes nothing in it."""
    from sklearn.manifold import TSNE

    nearby = min(30.0, (len(features) - 1) / 3)
    placed: np.ndarray = TSNE(init="pca", perplexity=nearby, random_state=0).fit_transform(features).astype(np.float64)
    placed -= placed.mean(axis=0)
    if reference is not None:
        left, _, right = np.linalg.svd(placed.T @ reference)
        placed = placed @ left @ right
    return placed


SECTION = Section("map", "Map", "sections/embedding_map.html.j2", context)
