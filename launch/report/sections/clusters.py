"""Samples of the largest, middle and smallest clusters, and how far the clusters can be relied on."""

from typing import Any

import numpy as np

from curation.base import rng
from curation.embeddings.source import EmbeddingSource
from curation.levels import ClusterHierarchy
from curation.measures.agreement import churn, contingency, nmi
from launch.report.sections.section import Section
from launch.report.view import View
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.evaluation import Evaluation
from pipeline.artifacts.selection import SelectedRows
from pipeline.splits import POOL

_PER_CLUSTER, _PER_GROUP = 12, 3
_BLOCK_ROWS = 1 << 20


def context(view: View) -> dict[str, Any]:
    """`clusters` with pictures, a panel for each level of each pictured round; `clusterings`, a row for each level of each
    round."""
    rounds = [view.attempt(panels, view, number) for number in view.pictured_rounds()]
    return {"clusters": [pictured for pictured in rounds if pictured], "clusterings": clusterings(view)}


def panels(view: View, number: int) -> dict[str, Any]:
    """Pictures from the largest, middle and smallest clusters of each level of one round."""
    clusters = view.run.by_round(Clusters)[number]
    hierarchy, row_ids = clusters.hierarchy(), clusters.row_ids()
    source = view.run.by_round(Embeddings)[number].pool(normalize=clusters.normalized)
    is_selected = view.selected(number) if number in view.rounds(SelectedRows) else None
    selected = view.selected_sizes(hierarchy, is_selected) if is_selected is not None else None
    levels = []
    for depth, level in enumerate(hierarchy.levels, start=1):
        by_size = np.argsort(-level.sizes, kind="stable")
        groups = _groups(by_size[level.sizes[by_size] > 0])
        nearest = _nearest(hierarchy, depth, np.concatenate([clusters for _, clusters in groups]), source)
        pictures = view.pictures.of(row_ids[np.concatenate(list(nearest.values()))], POOL)
        cards = {
            cluster: {
                "id": cluster,
                "size": int(level.sizes[cluster]),
                "selected": int(selected[depth - 1][cluster]) if selected else None,
                "tiles": _tiles(rows, row_ids, is_selected, pictures),
            }
            for cluster, rows in nearest.items()
        }
        shown = [{"name": name, "cards": [cards[cluster] for cluster in clusters.tolist()]} for name, clusters in groups]
        levels.append({"level": depth, "num": level.num_clusters, "groups": shown})
    return {"round": number, "levels": levels}


def _tiles(
    rows: np.ndarray, row_ids: np.ndarray, is_selected: np.ndarray | None, pictures: dict[int, int]
) -> list[dict[str, Any]]:
    """The rows (M,) of a clustering with `row_ids` (N,) that have a picture."""
    ids = row_ids[rows].tolist()
    flags = is_selected[rows].tolist() if is_selected is not None else [False] * len(ids)
    return [
        {"row_id": row_id, "picture": pictures[row_id], "is_selected": flag}
        for row_id, flag in zip(ids, flags, strict=True)
        if row_id in pictures
    ]


def _groups(by_size: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Three clusters of each kind, none of them twice."""
    num = len(by_size)
    if num <= 3 * _PER_GROUP:
        return [("All clusters, largest first", by_size)]
    middle = max(num // 2 - _PER_GROUP // 2, _PER_GROUP)
    middle = min(middle, num - 2 * _PER_GROUP)
    return [
        ("Largest", by_size[:_PER_GROUP]),
        ("In the middle", by_size[middle : middle + _PER_GROUP]),
        ("Smallest", by_size[-_PER_GROUP:]),
    ]


def _nearest(hierarchy: ClusterHierarchy, depth: int, clusters: np.ndarray, source: EmbeddingSource) -> dict[int, np.ndarray]:
    """Rows nearest to the centroid of each of the `clusters`, nearest first.

    At level 1 the distances are known. Above it they are measured on at most a few hundred members drawn at random.
    """
    first = hierarchy.levels[0]
    candidates: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    """By cluster, rows and what they are ranked by."""
    keep = _PER_CLUSTER if depth == 1 else 30 * _PER_CLUSTER
    for start in range(0, len(first.assignment), _BLOCK_ROWS):
        labels = first.assignment[start : start + _BLOCK_ROWS]
        for upper in hierarchy.levels[1:depth]:
            labels = upper.assignment[labels]
        hits = np.flatnonzero(np.isin(labels, clusters))
        rows = hits + start
        score = first.squared_distance[rows] if depth == 1 else rng.uniform(rng.key(0, "report", depth), rows)[:, 0]
        for cluster in np.unique(labels[hits]).tolist():
            is_member = labels[hits] == cluster
            old_rows, old_score = candidates.get(cluster, (np.empty(0, np.int64), np.empty(0)))
            all_rows, all_score = np.concatenate([old_rows, rows[is_member]]), np.concatenate([old_score, score[is_member]])
            best = np.argsort(all_score, kind="stable")[:keep]
            candidates[cluster] = all_rows[best], all_score[best]
    nearest = {}
    for cluster, (rows, _) in candidates.items():
        rows = np.sort(rows)
        difference = source.take(rows).astype(np.float32) - hierarchy.levels[depth - 1].centroids[cluster]
        nearest[cluster] = rows[np.argsort((difference**2).sum(axis=1), kind="stable")][:_PER_CLUSTER]
    return nearest


def clusterings(view: View) -> list[dict[str, Any]]:
    """What is known of each level of each round's clusters, and how much they differ from those of the round before."""
    rows: list[dict[str, Any]] = []
    before: Clusters | None = None
    for number in view.rounds(Clusters):
        clusters = view.run.by_round(Clusters)[number]
        changes = (view.attempt(_changes, before, clusters) or []) if before else []
        agreements = view.statistics(Evaluation, number).get("class_agreement", {})
        for index, level in enumerate(clusters.statistics["levels"]):
            row = {"round": number, "level": index + 1, **level} | (changes[index] if index < len(changes) else {})
            if agreement := agreements.get(f"level_{index + 1}"):
                row["class_ami"] = agreement["ami"]
            rows.append(row)
        before = clusters
    return rows


def _changes(before: Clusters, after: Clusters) -> list[dict[str, float]]:
    """How much the clusters of the pool changed between two rounds, for each level that both have."""
    if not np.array_equal(before.row_ids(), after.row_ids()):
        return []
    old, new = before.hierarchy(), after.hierarchy()
    both = range(1, min(len(old.levels), len(new.levels)) + 1)
    tables = (contingency(old.labels(level), new.labels(level)) for level in both)
    return [{"nmi": nmi(table), "churn": churn(table)} for table in tables]


SECTION = Section("clusters", "Clusters", "sections/clusters.html.j2", context)
