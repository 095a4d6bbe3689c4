"""Samples of the largest, middle and smallest clusters, and how far the clusters can be relied on."""

from typing import Any

import numpy as np

from curation.base import rng
from curation.embeddings.source import EmbeddingSource
from curation.kmeans.levels import ClusterHierarchy
from curation.measures.agreement import churn, contingency, nmi
from launch.report.sections.section import Section
from launch.report.view import View
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.evaluation import Evaluation
from pipeline.artifacts.selection import SelectedRows
from pipeline.artifacts.splits import POOL

_PER_CLUSTER, _PER_GROUP = 12, 3
_BLOCK_ROWS = 1 << 20


def context(view: View) -> dict[str, Any]:
    """`clusters` with pictures, and `clusterings`, a row for each level of each round."""
    rounds = [view.attempt(clusters, view, number) for number in view.pictured_rounds()]
    return {"clusters": [pictured for pictured in rounds if pictured], "clusterings": view.attempt(clusterings, view) or []}


def clusters(view: View, number: int) -> dict[str, Any]:
    """Pictures from the largest, middle and smallest clusters of each level of one round."""
    clustering = view.run.by_round(Clusters)[number]
    hierarchy, row_ids = clustering.hierarchy(), clustering.row_ids()
    source = view.run.by_round(Embeddings)[number].pool(normalize=clustering.normalized)
    has_selection = number in view.rounds(SelectedRows)
    chosen = view.selected(number) if has_selection else np.zeros(len(row_ids), dtype=bool)
    counts = view.selected_sizes(hierarchy, chosen)
    levels = []
    for depth, level in enumerate(hierarchy.levels, start=1):
        by_size = np.argsort(-level.sizes, kind="stable")
        groups = _groups(by_size[level.sizes[by_size] > 0])
        nearest = _nearest(hierarchy, depth, np.concatenate([ids for _, ids in groups]), source)
        shown = []
        for name, ids in groups:
            cards = []
            for cluster in ids.tolist():
                rows = nearest[cluster]
                numbers = view.pictures.of(row_ids[rows], POOL)
                is_chosen = dict(zip(row_ids[rows].tolist(), chosen[rows].tolist(), strict=True))
                tiles = [{"picture": picture, "row": row, "on": is_chosen[row]} for row, picture in numbers.items()]
                selected = int(counts[depth - 1][cluster]) if has_selection else None
                cards.append({"id": cluster, "size": int(level.sizes[cluster]), "selected": selected, "tiles": tiles})
            shown.append({"name": name, "cards": cards})
        levels.append({"level": depth, "num": level.num_clusters, "groups": shown})
    return {"round": number, "levels": levels}


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
    pool: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    keep = _PER_CLUSTER if depth == 1 else 30 * _PER_CLUSTER
    for start in range(0, len(first.assignment), _BLOCK_ROWS):
        labels = first.assignment[start : start + _BLOCK_ROWS]
        for upper in hierarchy.levels[1:depth]:
            labels = upper.assignment[labels]
        hits = np.flatnonzero(np.isin(labels, clusters))
        rows = hits + start
        score = first.squared_distance[rows] if depth == 1 else rng.uniform(rng.key(0, "report", depth), rows)[:, 0]
        for cluster in np.unique(labels[hits]).tolist():
            here = labels[hits] == cluster
            old_rows, old_score = pool.get(cluster, (np.empty(0, np.int64), np.empty(0)))
            all_rows, all_score = np.concatenate([old_rows, rows[here]]), np.concatenate([old_score, score[here]])
            best = np.argsort(all_score, kind="stable")[:keep]
            pool[cluster] = all_rows[best], all_score[best]
    result = {}
    for cluster, (rows, _) in pool.items():
        rows = np.sort(rows)
        difference = source.take(rows).astype(np.float32) - hierarchy.levels[depth - 1].centroids[cluster]
        result[cluster] = rows[np.argsort((difference**2).sum(axis=1), kind="stable")][:_PER_CLUSTER]
    return result


def clusterings(view: View) -> list[dict[str, Any]]:
    """What is known of each level of each round's clusters, and how alike they are to those of the round before."""
    rows = []
    finished = view.run.by_round(Clusters)
    for place, number in enumerate(numbers := list(finished)):
        changes = _changes(finished[numbers[place - 1]], finished[number]) if place else []
        classes = view.statistics(Evaluation, number).get("class_agreement", {})
        for index, level in enumerate(finished[number].statistics["levels"]):
            row = {"round": number, "level": index + 1, **level} | (changes[index] if index < len(changes) else {})
            if agreement := classes.get(f"level_{index + 1}"):
                row["class_ami"] = agreement["ami"]
            rows.append(row)
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
