"""Exact streaming k-means: greedy k-means++ on a sample, then Lloyd iterations over blocks of rows.

One pass over the rows gives label and squared distance; between workers travel only the (K, D) sums and (K,) counts. Sums
are taken in float64. Rows that are fp16, as embeddings on disk are, add up there without rounding, so the centroids are
bit-equal for any number of workers and any order of blocks.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from curation import rng
from curation.collectives import Alone, Collectives
from curation.errors import DataError
from curation.source import EmbeddingSource


@dataclass(frozen=True, kw_only=True)
class KMeansResult:
    """K centroids, none of them empty, and where each of the N rows belongs."""

    centroids: np.ndarray
    """(K, D) float32."""
    assignment: np.ndarray
    """(N,) int32: the nearest centroid of each row; the smaller index on a tie."""
    squared_distance: np.ndarray
    """(N,) float32: squared Euclidean distance to it."""
    sizes: np.ndarray
    """(K,) int64: rows of each centroid, at least one."""
    inertia: list[float]
    """Sum of squared distances after each iteration; never rises."""


def kmeans(
    source: EmbeddingSource,
    num_clusters: int,
    *,
    stream: int,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    initial: np.ndarray | None = None,
    collectives: Collectives | None = None,
) -> KMeansResult:
    """Cluster the rows of `source` into at most `num_clusters` by Euclidean distance.

    The number of centroids is capped at the number of distinct rows. Stops when an iteration lowers the inertia by less
    than `tolerance` of itself, or after `max_iterations`; with 0 it only assigns. Starts from `initial` (K, D) where given,
    else from seeds. `stream` is the random key (`rng.key`). Raises DataError for NaN or infinite rows and for an empty source.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1; got {num_clusters}")
    if source.num_rows == 0:
        raise DataError("There are no rows to cluster: the source is empty.")
    workers = collectives or Alone()

    sample_size = min(source.num_rows, max(10 * num_clusters, 20_000))
    sample_rows = np.sort(rng.permute(rng.key(stream, "sample"), np.arange(sample_size), source.num_rows))
    sample = source.take(sample_rows).astype(np.float32)
    if not np.isfinite(sample).all():
        raise DataError("Some embeddings are NaN or infinite. Embed again, or remove those rows.")
    # Distances are computed by expanding |x - c|², which cancels badly far from the origin; so the origin moves.
    origin = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
    if initial is None:
        centroids = plus_plus(sample - origin, num_clusters, stream=rng.key(stream, "seeding")) + origin
    else:
        centroids = initial.astype(np.float32)

    inertia: list[float] = []
    for _ in range(max_iterations):
        step = _pass(source, centroids, origin, workers)
        inertia.append(step.inertia)
        repaired = _repair(step, source, workers)
        means = step.sums / np.maximum(step.counts, 1)[:, None]
        centroids = np.where(step.counts[:, None] > 0, means, centroids).astype(np.float32)
        if repaired == 0 and len(inertia) > 1 and inertia[-2] - inertia[-1] <= tolerance * inertia[-2]:
            break
    final = _pass(source, centroids, origin, workers)
    occupied = final.counts > 0
    renumbered = np.cumsum(occupied) - 1
    return KMeansResult(
        centroids=centroids[occupied],
        assignment=renumbered[np.concatenate(workers.gather(final.assignment))].astype(np.int32),
        squared_distance=np.concatenate(workers.gather(final.squared_distance)),
        sizes=final.counts[occupied],
        inertia=[*inertia, final.inertia],
    )


def plus_plus(rows: np.ndarray, num_clusters: int, *, stream: int) -> np.ndarray:
    """Greedy k-means++ seeding: (K, D) of `rows` (M, D) float32, fewer than `num_clusters` if fewer rows are distinct.

    Arthur and Vassilvitskii, "k-means++", SODA 2007, with the greedy choice among 2 + ln K candidates that their section
    on experiments describes.
    """
    points = torch.from_numpy(np.ascontiguousarray(rows))
    norms = (points * points).sum(1)
    draws = rng.generator(stream)
    trials = 2 + int(math.log(num_clusters))
    chosen = [int(draws.integers(len(rows)))]
    nearest = _squared_to(points, norms, torch.tensor(chosen))[0]
    # A row equal to a chosen one has distance zero up to rounding; without this floor it could be chosen again.
    floor = 1e-6 * float(nearest.max())
    while len(chosen) < num_clusters:
        cumulative = torch.cumsum(torch.where(nearest > floor, nearest, 0.0).double(), 0).numpy()
        if cumulative[-1] <= 0:
            break
        picks = np.searchsorted(cumulative, draws.random(trials) * cumulative[-1], side="right")
        candidates = torch.from_numpy(np.minimum(picks, len(rows) - 1))
        distances = torch.minimum(_squared_to(points, norms, candidates), nearest)
        best = int(distances.sum(1, dtype=torch.float64).argmin())
        chosen.append(int(candidates[best]))
        nearest = distances[best]
    return np.array(rows[chosen])


def _squared_to(points: torch.Tensor, norms: torch.Tensor, picks: torch.Tensor) -> torch.Tensor:
    """Squared distances of all points (M, D) to the picked ones (T,): (T, M)."""
    return (norms[picks][:, None] + norms - 2 * points[picks] @ points.T).clamp_(min=0)


def nearest_centroid(block: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For rows (B, D) and centroids (K, D), both float32 near the origin: labels (B,) int64, squared distances (B,)."""
    x, c = torch.from_numpy(block), torch.from_numpy(centroids)
    scores = torch.addmm((c * c).sum(1), x, c.T, beta=1, alpha=-2)
    smallest, labels = scores.min(dim=1)
    return labels.numpy(), (smallest + (x * x).sum(1)).clamp_(min=0).numpy()


@dataclass(frozen=True, kw_only=True)
class _Pass:
    """What one pass found: the first three for this worker's rows, the rest over all workers."""

    first_row: int
    assignment: np.ndarray
    squared_distance: np.ndarray
    sums: np.ndarray
    counts: np.ndarray
    inertia: float


def _pass(source: EmbeddingSource, centroids: np.ndarray, origin: np.ndarray, workers: Collectives) -> _Pass:
    """Assign every row to its nearest centroid and sum the rows of each cluster."""
    num_clusters = len(centroids)
    shifted = centroids - origin
    sums = torch.zeros(num_clusters, source.dim, dtype=torch.float64)
    counts = np.zeros(num_clusters, dtype=np.int64)
    first_rows, labels, distances, inertia = [0], [np.empty(0, np.int64)], [np.empty(0, np.float32)], [0.0]
    for first, block in source.blocks(workers.rank, workers.size):
        rows = block.astype(np.float32)
        label, distance = nearest_centroid(rows - origin, shifted)
        if not np.isfinite(distance).all():
            raise DataError("Some embeddings are NaN or infinite. Embed again, or remove those rows.")
        sums.index_add_(0, torch.from_numpy(label), torch.from_numpy(rows.astype(np.float64)))
        counts += np.bincount(label, minlength=num_clusters)
        first_rows.append(first)
        labels.append(label)
        distances.append(distance)
        inertia.append(float(distance.sum(dtype=np.float64)))
    return _Pass(
        first_row=first_rows[min(1, len(first_rows) - 1)],
        assignment=np.concatenate(labels),
        squared_distance=np.concatenate(distances),
        sums=workers.sum(sums.numpy()),
        counts=workers.sum(counts),
        inertia=math.fsum(np.concatenate(workers.gather(np.array(inertia)))),
    )


def _repair(found: _Pass, source: EmbeddingSource, workers: Collectives) -> int:
    """Give each empty cluster the row that fits its own cluster worst, in place in `found`; returns how many.

    A row leaves its cluster only if another row stays, so the number of occupied clusters grows. Rows that equal their
    centroid are never moved: then there are no more distinct rows than occupied clusters.
    """
    empty = np.flatnonzero(found.counts == 0)
    if len(empty) == 0:
        return 0
    worst = np.sort(np.argsort(-found.squared_distance, kind="stable")[: len(empty)])
    distance = np.concatenate(workers.gather(found.squared_distance[worst]))
    label = np.concatenate(workers.gather(found.assignment[worst]))
    rows = np.concatenate(workers.gather(source.take(found.first_row + worst).astype(np.float64)))
    moved = 0
    # Each worker offers as many rows; only the worst of all of them are the same for any number of workers.
    for donor in np.argsort(-distance, kind="stable")[: len(empty)]:
        if distance[donor] <= 0:
            break
        if found.counts[label[donor]] > 1:
            cluster = empty[moved]
            found.sums[label[donor]] -= rows[donor]
            found.counts[label[donor]] -= 1
            found.sums[cluster] = rows[donor]
            found.counts[cluster] = 1
            moved += 1
    return moved
