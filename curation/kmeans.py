"""Streaming k-means: seeds and first iterations on a sample, then Lloyd iterations over all rows.

One pass over the rows gives each one's label, squared distance and margin; between workers travel the sample, the (K, D)
sums and the (K,) counts. Sums are exact: every term is rounded to a grid so coarse that float64 adds without rounding.
Therefore the result is the same, bit for bit, on any number of workers, with any cut into blocks, on a GPU or not in order.
"""

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation import rng
from curation.collectives import Alone, Collectives
from curation.distance import NearestCentroid, default_device
from curation.errors import DataError
from curation.exact import Grid
from curation.journal import Journal
from curation.seeding import mesoclusters, plus_plus
from curation.source import ArraySource, EmbeddingSource

_SAMPLE_PER_CLUSTER, _SAMPLE_ROWS = 20, 20_000
_SAMPLE_BYTES = 2**31
_REFINE_ITERATIONS = 5
_MANY = 4096


@dataclass(frozen=True, kw_only=True)
class KMeansResult:
    """K centroids, none of them empty, and where this worker's N rows belong."""

    centroids: np.ndarray
    """(K, D) float32."""
    assignment: np.ndarray
    """(N,) int32: the nearest centroid of each row; the smaller index on a tie."""
    squared_distance: np.ndarray
    """(N,) float32: squared Euclidean distance to it."""
    margin: np.ndarray
    """(N,) float32: how much greater the squared distance to the second nearest is."""
    sizes: np.ndarray
    """(K,) int64: rows of each centroid over all workers, at least one."""
    inertia: list[float]
    """Weighted sum of squared distances over all workers, of each iteration and last of the result; never rises."""


@dataclass(frozen=True)
class Progress:
    """What k-means reports after each pass over the rows."""

    iteration: int
    inertia: float
    rows: int


def kmeans(source: EmbeddingSource, num_clusters: int, **options: Any) -> KMeansResult:
    """`kmeans_steps`, carried through to its result."""
    steps = kmeans_steps(source, num_clusters, **options)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: KMeansResult = end.value
            return result


def kmeans_steps(
    source: EmbeddingSource,
    num_clusters: int,
    *,
    stream: int,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
    spherical: bool = False,
    weights: np.ndarray | None = None,
    initial: np.ndarray | None = None,
    collectives: Collectives | None = None,
    journal: Journal | None = None,
    device: torch.device | None = None,
) -> Generator[Progress, None, KMeansResult]:
    """Cluster rows into at most `num_clusters` by Euclidean distance; yields a report a pass, returns the result.

    `source` holds this worker's rows (and `weights` (N,) float32 theirs); workers hold theirs in rank order. The number of
    centroids is capped at the number of distinct rows. Stops when moving the centroids to their means would lower the
    inertia by less than `tolerance` of itself, or after `max_iterations` moves; with 0 it only assigns. Starts from
    `initial` (K, D) where given, else from seeds. With `spherical` centroids are kept at unit length, which for rows of
    unit length is k-means by cosine (Dhillon and Modha, Machine Learning 2001). `stream` is the random key (`rng.key`).

    Raises DataError for NaN or infinite rows and for an empty source.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1; got {num_clusters}")
    workers, journal = collectives or Alone(), journal or Journal()
    rows = _Rows.of(source, weights, workers, device or default_device())
    if rows.total == 0:
        raise DataError("There are no rows to cluster: the source is empty.")
    wished = max(_SAMPLE_PER_CLUSTER * num_clusters, _SAMPLE_ROWS)
    bounded = max(_SAMPLE_BYTES // (4 * source.dim), 4 * num_clusters)
    sample, sample_weights = rows.sample(min(wished, bounded), rng.key(stream, "sample"))
    space = _Space.of(sample, sample_weights, rows.total)
    options: dict[str, Any] = {"spherical": spherical, "tolerance": tolerance}

    if state := journal.load("iterations"):
        centroids, inertia = state["centroids"], state["inertia"].tolist()
    else:
        inertia = []
        if initial is not None:
            centroids = initial.astype(np.float32)
        else:
            centroids = yield from _seed(sample, sample_weights, num_clusters, space, rows, stream, journal, options)
    return (yield from _lloyd(rows, centroids, space, stream, journal, inertia, max_iterations, **options))


def _seed(
    sample: np.ndarray,
    weights: np.ndarray | None,
    num_clusters: int,
    space: "_Space",
    rows: "_Rows",
    stream: int,
    journal: Journal,
    options: dict[str, Any],
) -> Generator[Progress, None, np.ndarray]:
    """Centroids (K, D): seeds in the sample, moved by a few iterations over it unless it is everything there is.

    Many are seeded group by group, which is cheaper by √K and moves them already.
    """
    points = torch.from_numpy(sample).to(rows.device) - space.origin.to(rows.device)
    mass = None if weights is None else torch.from_numpy(weights).to(rows.device)
    key = rng.key(stream, "seeding")
    if num_clusters > _MANY and mass is None:
        centroids = (mesoclusters(points, num_clusters, stream=key) + space.origin.to(rows.device)).cpu().numpy()
    else:
        centroids = sample[plus_plus(points, num_clusters, stream=key, weights=mass, journal=journal)]
    if num_clusters <= _MANY and len(sample) < rows.total:
        alone = _Rows.of(ArraySource(sample), weights, Alone(), rows.device)
        steps = _lloyd(alone, centroids, space, stream, journal.inner("sample"), [], _REFINE_ITERATIONS, **options)
        centroids = (yield from steps).centroids
    # Every worker has computed the same; where their processors differ in rounding, the first one's counts.
    first = centroids if rows.workers.rank == 0 else centroids[:0]
    return rows.workers.gather(first)[0]


def _lloyd(
    rows: "_Rows",
    centroids: np.ndarray,
    space: "_Space",
    stream: int,
    journal: Journal,
    inertia: list[float],
    max_moves: int,
    *,
    spherical: bool,
    tolerance: float,
) -> Generator[Progress, None, KMeansResult]:
    """Lloyd iterations from `centroids`, continuing after those that `inertia` tells of."""
    while True:
        found = _pass(rows, centroids, space)
        inertia.append(found.inertia)
        yield Progress(len(inertia), found.inertia, rows.total)
        if len(inertia) > max_moves:
            break
        repaired = _repair(found, rows, rng.key(stream, "repair", len(inertia)))
        occupied = found.counts > 0
        means = found.sums / np.where(occupied, found.mass, 1)[:, None]
        if spherical:
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        moved = np.where(occupied[:, None], means, centroids).astype(np.float32)
        if not repaired and _gain(found, centroids, moved, space) <= tolerance * found.inertia:
            break
        centroids = moved
        journal.save("iterations", centroids=centroids, inertia=np.array(inertia))
    occupied = found.counts > 0
    return KMeansResult(
        centroids=centroids[occupied],
        assignment=(np.cumsum(occupied) - 1)[found.assignment].astype(np.int32),
        squared_distance=found.squared_distance,
        margin=found.margin,
        sizes=found.counts[occupied],
        inertia=inertia,
    )


@dataclass(frozen=True)
class _Space:
    """Where the rows lie: the origin that distances are computed about, and the grids on which sums are exact."""

    origin: Tensor
    rows: Grid
    squares: Grid

    @classmethod
    def of(cls, sample: np.ndarray, weights: np.ndarray | None, num_rows: int) -> "_Space":
        """From a sample (M, D). Expanded distances cancel badly far from the origin, so the origin moves to the mean."""
        origin = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        weight = 1.0 if weights is None else float(weights.max())
        farthest = 4 * float(((sample - origin) ** 2).sum(1).max())
        return cls(
            torch.from_numpy(origin),
            Grid(float(np.abs(sample).max()) * weight, num_rows),
            Grid(farthest * weight, num_rows),
        )


@dataclass(frozen=True)
class _Rows:
    """This worker's rows and their place among everyone's."""

    source: EmbeddingSource
    weights: np.ndarray | None
    workers: Collectives
    first: int
    total: int
    device: torch.device

    @classmethod
    def of(cls, source: EmbeddingSource, weights: np.ndarray | None, workers: Collectives, device: torch.device) -> "_Rows":
        counts = np.concatenate(workers.gather(np.array([source.num_rows])))
        return cls(source, weights, workers, int(counts[: workers.rank].sum()), int(counts.sum()), device)

    def sample(self, size: int, stream: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`size` random rows of all workers' (M, D) float32 and their weights; the same on every worker."""
        places = np.sort(rng.permute(stream, np.arange(min(size, self.total)), self.total)) - self.first
        mine = places[(places >= 0) & (places < self.source.num_rows)]
        rows = np.concatenate(self.workers.gather(self.source.take(mine).astype(np.float32)))
        if not np.isfinite(rows).all():
            raise DataError("Some embeddings are NaN or infinite. Embed again, or remove those rows.")
        if self.weights is None:
            return rows, None
        return rows, np.concatenate(self.workers.gather(self.weights[mine].astype(np.float32)))


@dataclass(kw_only=True)
class _Pass:
    """What one pass found: the first three for this worker's rows, the rest over all workers."""

    assignment: np.ndarray
    squared_distance: np.ndarray
    margin: np.ndarray
    sums: np.ndarray
    """(K, D) float64: weighted."""
    counts: np.ndarray
    """(K,) int64: rows."""
    mass: np.ndarray
    """(K,) float64: their weights."""
    inertia: float


def _pass(rows: _Rows, centroids: np.ndarray, space: _Space) -> _Pass:
    """Assign every row to its nearest centroid and sum the rows of each cluster."""
    num_clusters, device = len(centroids), rows.device
    origin = space.origin.to(device)
    nearest = NearestCentroid(torch.from_numpy(centroids).to(device) - origin)
    sums = torch.zeros(num_clusters, rows.source.dim, dtype=torch.float64, device=device)
    counts = torch.zeros(num_clusters, dtype=torch.int64, device=device)
    mass = torch.zeros(num_clusters, dtype=torch.float64, device=device)
    inertia = torch.zeros((), dtype=torch.float64, device=device)
    assignment = np.empty(rows.source.num_rows, dtype=np.int32)
    squared_distance = np.empty(rows.source.num_rows, dtype=np.float32)
    margin = np.empty(rows.source.num_rows, dtype=np.float32)
    for first, block in rows.source.blocks():
        for start in range(0, len(block), nearest.block_rows):
            some = torch.from_numpy(np.array(block[start : start + nearest.block_rows])).to(device).float()
            found = nearest(some - origin)
            place = slice(first + start, first + start + len(some))
            terms, squares = space.rows(some), found.squared
            if rows.weights is not None:
                weight = torch.from_numpy(rows.weights[place]).to(device)
                terms, squares = space.rows(some * weight[:, None]), squares * weight
                mass.index_add_(0, found.label, weight.double())
            sums.index_add_(0, found.label, terms)
            counts += torch.bincount(found.label, minlength=num_clusters)
            inertia += space.squares(squares).sum()
            assignment[place] = found.label.cpu().numpy()
            squared_distance[place] = found.squared.cpu().numpy()
            margin[place] = found.margin.cpu().numpy()
    total = rows.workers.sum(counts.cpu().numpy())
    result = _Pass(
        assignment=assignment,
        squared_distance=squared_distance,
        margin=margin,
        sums=rows.workers.sum(sums.cpu().numpy()),
        counts=total,
        mass=total.astype(np.float64) if rows.weights is None else rows.workers.sum(mass.cpu().numpy()),
        inertia=float(rows.workers.sum(inertia.cpu().numpy()[None])[0]),
    )
    if not math.isfinite(result.inertia):
        raise DataError("Some embeddings are NaN or infinite. Embed again, or remove those rows.")
    return result


def _gain(found: _Pass, centroids: np.ndarray, moved: np.ndarray, space: _Space) -> float:
    """By how much the inertia falls when the centroids move and no label changes."""
    origin = space.origin.numpy().astype(np.float64)
    sums = found.sums - found.mass[:, None] * origin
    before, after = centroids - origin, moved - origin
    squares = (after * after).sum(1) - (before * before).sum(1)
    return float((2 * sums * (after - before)).sum() - (found.mass * squares).sum())


def _repair(found: _Pass, rows: _Rows, stream: int) -> int:
    """Give each empty cluster a row of its own, in place in `found`; returns how many.

    Rows are drawn by their squared distance, as k-means++ would draw the next seed, so crowded clusters that fit badly are
    split (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", IPL 2006). A row leaves its cluster only if
    another one stays. Rows that equal their centroid are never moved: with only those left there are no more distinct rows
    than occupied clusters.
    """
    empty = np.flatnonzero(found.counts == 0)
    if len(empty) == 0:
        return 0
    # Each worker offers as many rows as could be needed; the best of all of them are the same for any number of workers.
    with np.errstate(divide="ignore"):
        chance = rng.uniform(stream, rows.first + np.arange(rows.source.num_rows))[:, 0]
        ticket = -np.log1p(-chance) / found.squared_distance
    mine = np.argsort(ticket, kind="stable")[: 2 * len(empty)]
    mine = np.sort(mine[np.isfinite(ticket[mine])])
    tickets = np.concatenate(rows.workers.gather(ticket[mine]))
    labels = np.concatenate(rows.workers.gather(found.assignment[mine]))
    weights = np.ones(len(mine)) if rows.weights is None else rows.weights[mine].astype(np.float64)
    weights = np.concatenate(rows.workers.gather(weights))
    values = np.concatenate(rows.workers.gather(rows.source.take(mine).astype(np.float64)))
    moved = 0
    for row in np.argsort(tickets, kind="stable"):
        if moved == len(empty):
            break
        donor, cluster = labels[row], empty[moved]
        if found.counts[donor] > 1:
            found.sums[donor] -= weights[row] * values[row]
            found.counts[donor] -= 1
            found.mass[donor] -= weights[row]
            found.sums[cluster] = weights[row] * values[row]
            found.counts[cluster] = 1
            found.mass[cluster] = weights[row]
            moved += 1
    return moved
