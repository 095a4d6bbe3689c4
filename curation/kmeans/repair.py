"""Repair of empty clusters: each gets a row that fits its own cluster badly."""

import numpy as np

from curation.base import rng
from curation.kmeans.rows import WorkerRows
from curation.kmeans.sums import Pass


def repair_empty(last: Pass, centroids: np.ndarray, rows: WorkerRows, rng_key: int) -> int:
    """Move one row into each empty cluster, in the sums, counts and mass of `last`; returns the number of rows moved.

    Rows are drawn by their squared distance to `centroids` (K, D), as k-means++ would draw the next seed, so that crowded
    clusters that fit badly are split (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 2006). A row
    leaves its cluster only if another one stays. Rows that equal their centroid never move: if there are no others, there
    are no more distinct rows than occupied clusters.
    """
    empty = np.flatnonzero(last.counts == 0)
    if len(empty) == 0:
        return 0
    # Each worker offers as many rows as could be needed; the best of all offers are the same for any number of workers.
    squared = rows.squared_distance(centroids, last.label).cpu().numpy()
    with np.errstate(divide="ignore"):
        chance = rng.uniform(rng_key, rows.first + np.arange(rows.source.num_rows))[:, 0]
        ticket = -np.log1p(-chance) / squared
    offered = np.argsort(ticket, kind="stable")[: 2 * len(empty)]
    offered = np.sort(offered[np.isfinite(ticket[offered])])
    tickets = np.concatenate(rows.workers.gather(ticket[offered]))
    donors = np.concatenate(rows.workers.gather(last.label.cpu().numpy()[offered]))
    weights = np.ones(len(offered)) if rows.weights is None else rows.weights[offered].astype(np.float64)
    weights = np.concatenate(rows.workers.gather(weights))
    values = np.concatenate(rows.workers.gather(rows.source.take(offered).astype(np.float64)))
    num_moved = 0
    for row in np.argsort(tickets, kind="stable"):
        if num_moved == len(empty):
            break
        donor, cluster = donors[row], empty[num_moved]
        if last.counts[donor] > 1:
            last.sums[donor] -= weights[row] * values[row]
            last.counts[donor] -= 1
            last.mass[donor] -= weights[row]
            last.sums[cluster] = weights[row] * values[row]
            last.counts[cluster] = 1
            last.mass[cluster] = weights[row]
            num_moved += 1
    return num_moved
