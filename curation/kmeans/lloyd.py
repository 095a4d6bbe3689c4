"""Streaming k-means: seeds and first iterations on a sample, then Lloyd iterations over all rows.

One pass over the rows gives each one's label, squared distance and margin; between workers travel the sample, the (K, D)
sums and the (K,) counts. Sums are exact: every term is rounded to a grid so coarse that float64 adds without rounding.
Therefore the result is the same, bit for bit, on any number of workers and with any cut into blocks, and a row that changes
its cluster can be taken out of one sum and added to another without a trace: only such rows cost anything but the search.
"""

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.base.collectives import Alone, Collectives, place_among
from curation.base.errors import DataError
from curation.base.journal import Journal
from curation.base.threads import one_thread
from curation.distance.exact import Grid
from curation.distance.nearest import Engine, NearestCentroid, default_device, squared_distance
from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import ArraySource, EmbeddingSource
from curation.kmeans.seeding import mesoclusters, plus_plus

_SAMPLE_PER_CLUSTER, _SAMPLE_ROWS = 20, 20_000
_SAMPLE_BYTES = 2**31
_REFINE_MOVES = 2
_MANY = 4096
_BLOCK = 16384
_UPLOAD = 2**17
"""Rows sent to a GPU at once."""


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
            fit: Fit = end.value
            return fit.result()


def kmeans_steps(
    source: EmbeddingSource,
    num_clusters: int,
    *,
    rng_key: int,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
    spherical: bool = False,
    weights: np.ndarray | None = None,
    initial: np.ndarray | None = None,
    collectives: Collectives | None = None,
    journal: Journal | None = None,
    engine: Engine = "torch",
    device: torch.device | None = None,
) -> Generator[Progress, None, "Fit"]:
    """Cluster rows into at most `num_clusters` by Euclidean distance; yields a report a pass, returns what it found.

    `source` holds this worker's rows (and `weights` (N,) float32 theirs); workers hold theirs in rank order. The number of
    centroids is capped at the number of distinct rows. Stops when moving the centroids to their means would lower the
    inertia by less than `tolerance` of itself, or after `max_iterations` moves; with 0 it only assigns. Starts from
    `initial` (K, D) where given, else from seeds. With `spherical` centroids are kept at unit length, which for rows of
    unit length is k-means by cosine (Dhillon and Modha, Machine Learning 2001). `rng_key` is the random key (`rng.key`). The
    result does not depend on the `engine` that finds nearest centroids.

    Raises DataError for NaN or infinite rows and for an empty source.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1; got {num_clusters}")
    workers, journal = collectives or Alone(), journal or Journal()
    rows = _Rows.of(source, weights, workers, engine, device or default_device())
    if rows.total == 0:
        raise DataError("There are no rows to cluster: the source is empty.")
    wished = max(_SAMPLE_PER_CLUSTER * num_clusters, _SAMPLE_ROWS)
    bounded = max(_SAMPLE_BYTES // (4 * source.dim), 4 * num_clusters)
    sample, sample_weights = rows.sample(min(wished, bounded), rng.key(rng_key, "sample"))
    space = _Space.of(sample, sample_weights, rows.total)

    if state := journal.load("iterations"):
        centroids, inertia = state["centroids"], state["inertia"].tolist()
    else:
        inertia = []
        if initial is not None:
            centroids = initial.astype(np.float32)
        else:
            centroids = yield from _seed(sample, sample_weights, num_clusters, space, rows, rng_key, journal, spherical)
    steps = _lloyd(rows, centroids, space, rng_key, journal, inertia, max_iterations, spherical=spherical, tolerance=tolerance)
    return (yield from steps)


def _seed(
    sample: np.ndarray,
    weights: np.ndarray | None,
    num_clusters: int,
    space: "_Space",
    rows: "_Rows",
    rng_key: int,
    journal: Journal,
    spherical: bool,
) -> Generator[Progress, None, np.ndarray]:
    """Centroids (K, D): seeds in the sample, moved by a few iterations over it unless it is everything there is.

    Many are seeded group by group, which is cheaper by √K and moves them already.
    """
    points = torch.from_numpy(sample).to(rows.device) - space.origin.to(rows.device)
    mass = None if weights is None else torch.from_numpy(weights).to(rows.device)
    key = rng.key(rng_key, "seeding")
    if num_clusters > _MANY and mass is None:
        centroids = (mesoclusters(points, num_clusters, rng_key=key) + space.origin.to(rows.device)).cpu().numpy()
    else:
        centroids = sample[plus_plus(points, num_clusters, rng_key=key, weights=mass, journal=journal)]
    if num_clusters <= _MANY and len(sample) < rows.total:
        alone = _Rows.of(ArraySource(sample), weights, Alone(), rows.engine, rows.device)
        sums = _Sums(alone, len(centroids), space)
        for number in range(_REFINE_MOVES):
            found = _pass(alone, centroids, space, sums, squares=False)
            yield Progress(number + 1, found.inertia, alone.total)
            centroids, _ = _moved(found, centroids, alone, rng.key(rng_key, "repair", "sample", number), spherical)
    # Every worker has computed the same; where their processors differ in rounding, the first one's counts.
    first = centroids if rows.workers.rank == 0 else centroids[:0]
    return rows.workers.gather(first)[0]


def _lloyd(
    rows: "_Rows",
    centroids: np.ndarray,
    space: "_Space",
    rng_key: int,
    journal: Journal,
    inertia: list[float],
    max_moves: int,
    *,
    spherical: bool,
    tolerance: float,
) -> Generator[Progress, None, "Fit"]:
    """Lloyd iterations from `centroids` (K, D), continuing after those that `inertia` tells of."""
    sums = _Sums(rows, len(centroids), space)
    while True:
        last = len(inertia) == max_moves
        found = _pass(rows, centroids, space, sums, squares=last)
        inertia.append(found.inertia)
        yield Progress(len(inertia), found.inertia, rows.total)
        if last:
            return Fit(rows, space, centroids, found, inertia)
        moved, repaired = _moved(found, centroids, rows, rng.key(rng_key, "repair", len(inertia)), spherical)
        if not repaired and found.inertia - _inertia(found, moved, space) <= tolerance * found.inertia:
            return Fit(rows, space, centroids, found, inertia)
        centroids = moved
        journal.save("iterations", centroids=centroids, inertia=np.array(inertia))


def _moved(found: "_Pass", centroids: np.ndarray, rows: "_Rows", rng_key: int, spherical: bool) -> tuple[np.ndarray, int]:
    """Each of the centroids (K, D) at the mean of its rows, and how many had none and got one."""
    repaired = _repair(found, centroids, rows, rng_key)
    occupied = found.counts > 0
    means = found.sums / np.where(occupied, found.mass, 1)[:, None]
    if spherical:
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    return np.where(occupied[:, None], means, centroids).astype(np.float32), repaired


class Fit:
    """Centroids, and the labels of the last pass over the rows."""

    def __init__(self, rows: "_Rows", space: "_Space", centroids: np.ndarray, found: "_Pass", inertia: list[float]) -> None:
        self._rows, self._space, self._found, self._inertia = rows, space, found, inertia
        self._every = centroids
        self._occupied = found.counts > 0
        self.centroids = centroids[self._occupied]
        """(K, D) float32, none of them empty."""

    def result(self) -> KMeansResult:
        """With the distance of every row; reads the rows again unless the last pass was known to be the last."""
        found = self._found
        squared = found.squared if found.squared is not None else self._rows.squared_distance(self._every, found.label)
        return KMeansResult(
            centroids=self.centroids,
            assignment=(np.cumsum(self._occupied) - 1)[found.label.cpu().numpy()].astype(np.int32),
            squared_distance=squared.cpu().numpy(),
            margin=found.margin.cpu().numpy(),
            sizes=found.counts[self._occupied],
            inertia=[*self._inertia[:-1], self._rows.inertia(squared, self._space)],
        )


@dataclass(frozen=True)
class _Space:
    """Where the rows lie: the origin that distances are computed about, and the grids on which sums are exact."""

    origin: Tensor
    rows: Grid
    squares: Grid
    weights: Grid

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
            Grid(weight, num_rows),
        )


def _held(source: EmbeddingSource, device: torch.device) -> Tensor | None:
    """All rows on the device, if they fill no more of it than there is room for."""
    room, held = _room(device), None
    for first, rows in read_ahead(source) if room else ():
        if held is None:
            if source.num_rows * source.dim * rows.element_size() > room:
                return None
            held = torch.empty(source.num_rows, source.dim, dtype=rows.dtype, device=device)
        held[first : first + len(rows)] = rows
    return held


def _room(device: torch.device) -> int:
    """Bytes for rows: half of what a GPU has free, and none of the machine's memory, where the source's own cache is."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0


@dataclass(frozen=True)
class _Rows:
    """This worker's rows and their place among everyone's."""

    source: EmbeddingSource
    weights: np.ndarray | None
    workers: Collectives
    first: int
    total: int
    engine: Engine
    device: torch.device
    held: Tensor | None
    """All rows (N, D) on the device, if there is room for them."""

    @classmethod
    def of(
        cls, source: EmbeddingSource, weights: np.ndarray | None, workers: Collectives, engine: Engine, device: torch.device
    ) -> "_Rows":
        first, total = place_among(workers, source.num_rows)
        return cls(source, weights, workers, first, total, engine, device, _held(source, device))

    def sample(self, size: int, rng_key: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`size` random rows of all workers' (M, D) float32 and their weights; the same on every worker."""
        places = np.sort(rng.permute(rng_key, np.arange(min(size, self.total)), self.total)) - self.first
        mine = places[(places >= 0) & (places < self.source.num_rows)]
        rows = np.concatenate(self.workers.gather(self.source.take(mine).astype(np.float32)))
        if not np.isfinite(rows).all():
            raise DataError("Some embeddings are NaN or infinite. Embed again, or remove those rows.")
        if self.weights is None:
            return rows, None
        return rows, np.concatenate(self.workers.gather(self.weights[mine].astype(np.float32)))

    def blocks(self, size: int) -> Iterator["_Block"]:
        """All rows, at most `size` at once."""
        pieces = [(0, self.held)] if self.held is not None else self._read(size)
        for first, block in pieces:
            for start in range(0, len(block), size):
                some = block[start : start + size].to(self.device)
                place = slice(first + start, first + start + len(some))
                weight = None if self.weights is None else torch.from_numpy(self.weights[place]).float().to(self.device)
                yield _Block(place, some, weight)

    def _read(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """The source's blocks, on a GPU so many at a time that they keep it busy."""
        if self.device.type == "cpu":
            yield from read_ahead(self.source)
            return
        waiting: list[Tensor] = []
        start = end = 0
        for first, block in read_ahead(self.source):
            waiting.append(block)
            end = first + len(block)
            if end - start >= min(size, _UPLOAD):
                yield start, torch.cat(waiting).pin_memory()
                waiting, start = [], end
        if waiting:
            yield start, torch.cat(waiting).pin_memory()

    def squared_distance(self, centroids: np.ndarray, label: Tensor) -> Tensor:
        """(N,) float32: of this worker's rows to the centroids (K, D) that `label` (N,) names."""
        every = torch.from_numpy(centroids).to(self.device)
        squared = torch.empty(self.source.num_rows, device=self.device)
        for place, some, _ in self.blocks(_BLOCK):
            squared[place] = squared_distance(some, every, label[place])
        return squared

    def inertia(self, squared: Tensor, space: "_Space") -> float:
        """The weighted sum of `squared` (N,) over all workers."""
        mine = squared if self.weights is None else squared * torch.from_numpy(self.weights).float().to(self.device)
        return float(self.workers.sum(space.squares(mine).sum()[None].cpu().numpy())[0])


class _Block(NamedTuple):
    """Some of a worker's rows."""

    place: slice
    """Where they lie among the worker's."""
    rows: Tensor
    """(B, D), in the type they have."""
    weights: Tensor | None
    """(B,) float32."""


class _Sums:
    """What this worker's rows add up to, by the labels of the last pass."""

    def __init__(self, rows: _Rows, num_clusters: int, space: _Space) -> None:
        num, device = rows.source.num_rows, rows.device
        self.label = torch.full((num,), -1, dtype=torch.int32, device=device)
        self.margin = torch.empty(num, device=device)
        self.of_rows = torch.zeros(num_clusters, rows.source.dim, dtype=torch.float64, device=device)
        self.of_squares = torch.zeros((), dtype=torch.float64, device=device)
        """Of the squared distances to the origin."""
        self._space = space
        self._first = True

    def update(self, block: "_Block", label: Tensor) -> None:
        """The rows of a block now have `label` (B,)."""
        weight, before = block.weights, self.label[block.place]
        moved = (label != before).nonzero()[:, 0]
        values = block.rows[moved].float()
        terms = self._space.rows(values if weight is None else values * weight[moved, None])
        self.of_rows.index_add_(0, label[moved], terms)
        if self._first:
            centred = values - self._space.origin.to(values.device)
            squares = torch.linalg.vecdot(centred, centred)
            self.of_squares += self._space.squares(squares if weight is None else squares * weight).sum()
        else:
            self.of_rows.index_add_(0, before[moved], terms, alpha=-1)
        self.label[block.place] = label

    def finish(self) -> None:
        """All rows have a label."""
        self._first = False


@dataclass(kw_only=True)
class _Pass:
    """What one pass found: the first three for this worker's rows, the rest over all workers."""

    label: Tensor
    margin: Tensor
    squared: Tensor | None
    """(N,) float32: squared distances, where asked for."""
    sums: np.ndarray
    """(K, D) float64: weighted."""
    counts: np.ndarray
    """(K,) int64: rows."""
    mass: np.ndarray
    """(K,) float64: their weights."""
    squares: float
    """Sum of the rows' squared distances to the origin."""
    inertia: float = math.nan


def _pass(rows: _Rows, centroids: np.ndarray, space: _Space, sums: _Sums, *, squares: bool) -> _Pass:
    """Assign every row to its nearest centroid and sum the rows of each cluster."""
    every = torch.from_numpy(centroids).to(rows.device)
    nearest = NearestCentroid(every, space.origin.to(rows.device), engine=rows.engine)
    squared = torch.empty(rows.source.num_rows, device=rows.device) if squares else None
    mass = torch.zeros(len(centroids), dtype=torch.float64, device=rows.device)
    for block in rows.blocks(nearest.block_rows):
        label, sums.margin[block.place] = nearest(block.rows)
        with one_thread():
            sums.update(block, label)
        if squared is not None:
            squared[block.place] = squared_distance(block.rows, every, label)
        if block.weights is not None:
            mass.index_add_(0, label, space.weights(block.weights))
    sums.finish()
    counts = rows.workers.sum(torch.bincount(sums.label, minlength=len(centroids)).cpu().numpy())
    found = _Pass(
        label=sums.label,
        margin=sums.margin,
        squared=squared,
        sums=rows.workers.sum(sums.of_rows.cpu().numpy()).copy(),
        counts=counts,
        mass=counts.astype(np.float64) if rows.weights is None else rows.workers.sum(mass.cpu().numpy()),
        squares=float(rows.workers.sum(sums.of_squares.cpu().numpy()[None])[0]),
    )
    found.inertia = _inertia(found, centroids, space)
    if not math.isfinite(found.inertia):
        raise DataError("Some embeddings are NaN or infinite. Embed again, or remove those rows.")
    return found


def _inertia(found: _Pass, centroids: np.ndarray, space: _Space) -> float:
    """The weighted sum of squared distances of the rows to `centroids` (K, D), with the labels of the pass."""
    origin = space.origin.numpy().astype(np.float64)
    sums, away = found.sums - found.mass[:, None] * origin, centroids - origin
    return max(0.0, found.squares - float((2 * sums * away).sum()) + float((found.mass * (away * away).sum(1)).sum()))


def _repair(found: _Pass, centroids: np.ndarray, rows: _Rows, rng_key: int) -> int:
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
    squared = rows.squared_distance(centroids, found.label).cpu().numpy()
    with np.errstate(divide="ignore"):
        chance = rng.uniform(rng_key, rows.first + np.arange(rows.source.num_rows))[:, 0]
        ticket = -np.log1p(-chance) / squared
    mine = np.argsort(ticket, kind="stable")[: 2 * len(empty)]
    mine = np.sort(mine[np.isfinite(ticket[mine])])
    tickets = np.concatenate(rows.workers.gather(ticket[mine]))
    labels = np.concatenate(rows.workers.gather(found.label.cpu().numpy()[mine]))
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
