"""Streaming k-means: seeds and first iterations on a sample, then Lloyd iterations over all rows of all workers.

A pass over the rows gives the nearest centroid of each. Between workers travel the sample, the (K, D) sums and the (K,)
counts. Sums are exact (`curation.kmeans.sums`), so the result is the same, bit for bit, on any number of workers and for any
division of the rows into blocks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from curation.base import rng
from curation.base.collectives import Alone, Collectives
from curation.base.device import default_device
from curation.base.errors import DataError
from curation.base.journal import Journal
from curation.distance.nearest import Engine
from curation.embeddings.source import ArraySource, EmbeddingSource
from curation.kmeans.repair import repair_empty
from curation.kmeans.rows import WorkerRows
from curation.kmeans.seeding import mesoclusters, plus_plus
from curation.kmeans.sums import ClusterSums, Extent, Pass, run_pass, total_inertia

_SAMPLE_PER_CLUSTER, _SAMPLE_ROWS = 20, 20_000
_SAMPLE_BYTES = 2**31
_REFINE_MOVES = 2
_MANY = 4096


@dataclass(frozen=True, kw_only=True)
class KMeansOptions:
    """Settings of one k-means."""

    max_iterations: int = 50
    """Maximum number of moves of the centroids; with 0 rows are only assigned to the initial centroids."""
    tolerance: float = 1e-3
    """k-means stops when moving the centroids to their means would lower the inertia by less than this share of it."""
    spherical: bool = False
    """Keep centroids at unit length, which for rows of unit length is k-means by cosine (Dhillon and Modha, Machine Learning
    2001)."""
    engine: Engine = "torch"
    """The library that finds nearest centroids; the result does not depend on it."""


@dataclass(frozen=True, kw_only=True)
class KMeansResult:
    """K centroids, none of them without rows, and the clusters of the N rows of this worker."""

    centroids: np.ndarray
    """(K, D) float32."""
    local_assignment: np.ndarray
    """(N,) int32: the nearest centroid of each row of this worker; the smaller index on a tie."""
    local_squared_distance: np.ndarray
    """(N,) float32: squared Euclidean distance of each row of this worker to its centroid."""
    sizes: np.ndarray
    """(K,) int64: rows of each cluster over all workers, at least one."""
    inertia: list[float]
    """Weighted sum of squared distances over all workers, of each iteration and last of the result; never rises."""


@dataclass(frozen=True)
class Progress:
    """State of a k-means after a pass over rows."""

    iteration: int
    """Number of the pass, from 1; passes over the sample and passes over all rows are counted separately."""
    inertia: float
    num_rows: int
    """Rows of the pass: those of the sample, or all."""


class KMeans:
    """A k-means of the rows of all workers into at most `num_clusters` clusters, by Euclidean distance.

    `source` holds the N rows of this worker, and `weights` (N,) float32 their weights; workers hold rows in the order of
    their ranks. Centroids start from `initial` (K, D), or from seeds. There are never more of them than distinct rows.
    `rng_key` is the random key (`rng.key`).
    """

    fit: "Fit"
    """The centroids that were found; set when `passes` has ended."""

    def __init__(
        self,
        source: EmbeddingSource,
        num_clusters: int,
        *,
        rng_key: int,
        options: KMeansOptions | None = None,
        weights: np.ndarray | None = None,
        initial: np.ndarray | None = None,
        collectives: Collectives | None = None,
        journal: Journal | None = None,
    ) -> None:
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be at least 1; got {num_clusters}")
        self._source, self._weights, self._initial = source, weights, initial
        self._num_clusters = num_clusters
        self._rng_key = rng_key
        self._options = options or KMeansOptions()
        self._workers = collectives or Alone()
        self._journal = journal or Journal()
        self._centroids = np.empty((0, source.dim), dtype=np.float32)

    def run(self, progress: Callable[[Progress], object] | None = None) -> KMeansResult:
        """Run all passes and return the result; `progress` is called after each pass.

        Raises DataError for an empty source and for NaN or infinite rows.
        """
        for report in self.passes():
            if progress is not None:
                progress(report)
        return self.fit.result()

    def passes(self) -> Iterator[Progress]:
        """Run pass by pass, for callers that report progress themselves; afterwards `fit` is set. Raises as `run` does."""
        rows = WorkerRows.of(self._source, self._weights, self._workers, default_device())
        if rows.total == 0:
            raise DataError("There are no rows to cluster: the source is empty.")
        sample_rows = max(_SAMPLE_PER_CLUSTER * self._num_clusters, _SAMPLE_ROWS)
        affordable_rows = max(_SAMPLE_BYTES // (4 * self._source.dim), 4 * self._num_clusters)
        sample, weights = rows.sample(min(sample_rows, affordable_rows), rng.key(self._rng_key, "sample"))
        extent = Extent.of(sample, weights, rows.total)
        inertia: list[float] = []
        if state := self._journal.load("iterations"):
            self._centroids, inertia = state["centroids"], state["inertia"].tolist()
        elif self._initial is not None:
            self._centroids = self._initial.astype(np.float32)
        else:
            self._centroids = self._seeds(sample, weights, rows.device, extent)
            if self._num_clusters <= _MANY and len(sample) < rows.total:
                yield from self._refine(WorkerRows.of(ArraySource(sample), weights, Alone(), rows.device), extent)
            # All workers have computed the same; where their processors differ in rounding, those of worker 0 count.
            self._centroids = rows.workers.broadcast(self._centroids, 0)
        yield from self._iterate(rows, extent, inertia)

    def _seeds(self, sample: np.ndarray, weights: np.ndarray | None, device: torch.device, extent: Extent) -> np.ndarray:
        """(K, D) float32: centroids to begin with, from the sample (M, D) and its weights (M,).

        Many are seeded group by group, which is cheaper by √K and moves them already.
        """
        origin = extent.origin.to(device)
        points = torch.from_numpy(sample).to(device) - origin
        rng_key = rng.key(self._rng_key, "seeding")
        if self._num_clusters > _MANY and weights is None:
            return (mesoclusters(points, self._num_clusters, rng_key=rng_key) + origin).cpu().numpy()
        mass = None if weights is None else torch.from_numpy(weights).to(device)
        return sample[plus_plus(points, self._num_clusters, rng_key=rng_key, weights=mass, journal=self._journal)]

    def _refine(self, sample: WorkerRows, extent: Extent) -> Iterator[Progress]:
        """Move the centroids by a few Lloyd iterations over the sample, as if this worker were alone."""
        sums = ClusterSums(sample, len(self._centroids), extent)
        for number in range(_REFINE_MOVES):
            last = run_pass(sample, self._centroids, extent, sums, self._options.engine, distances=False)
            yield Progress(number + 1, last.inertia, sample.total)
            self._centroids, _ = self._moved(last, sample, rng.key(self._rng_key, "repair", "sample", number))

    def _iterate(self, rows: WorkerRows, extent: Extent, inertia: list[float]) -> Iterator[Progress]:
        """Lloyd iterations over all rows, continuing after those whose `inertia` is known."""
        sums = ClusterSums(rows, len(self._centroids), extent)
        while True:
            is_last = len(inertia) == self._options.max_iterations
            last = run_pass(rows, self._centroids, extent, sums, self._options.engine, distances=is_last)
            inertia.append(last.inertia)
            yield Progress(len(inertia), last.inertia, rows.total)
            if is_last:
                break
            moved, num_repaired = self._moved(last, rows, rng.key(self._rng_key, "repair", len(inertia)))
            gain = last.inertia - last.inertia_about(moved, extent)
            if num_repaired == 0 and gain <= self._options.tolerance * last.inertia:
                break
            self._centroids = moved
            self._journal.save("iterations", centroids=moved, inertia=np.array(inertia))
        self.fit = Fit(rows, extent, self._centroids, last, inertia)

    def _moved(self, last: Pass, rows: WorkerRows, rng_key: int) -> tuple[np.ndarray, int]:
        """The centroids (K, D) moved to the means of their rows, and how many empty clusters were given a row."""
        num_repaired = repair_empty(last, self._centroids, rows, rng_key)
        occupied = last.counts > 0
        means = last.sums / np.where(occupied, last.mass, 1)[:, None]
        if self._options.spherical:
            means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        return np.where(occupied[:, None], means, self._centroids).astype(np.float32), num_repaired


class Fit:
    """Centroids, and the labels that the last pass over the rows gave."""

    def __init__(self, rows: WorkerRows, extent: Extent, centroids: np.ndarray, last: Pass, inertia: list[float]) -> None:
        self._rows, self._extent, self._last, self._inertia = rows, extent, last, inertia
        self._all_centroids = centroids
        self._occupied = last.counts > 0
        self.centroids = centroids[self._occupied]
        """(K, D) float32, none of them without rows."""

    def result(self) -> KMeansResult:
        """The centroids with the cluster and distance of every row; reads the rows again if the last pass kept no distances."""
        last = self._last
        squared = last.squared
        if squared is None:
            squared = self._rows.squared_distance(self._all_centroids, last.label)
        return KMeansResult(
            centroids=self.centroids,
            local_assignment=(np.cumsum(self._occupied) - 1)[last.label.cpu().numpy()].astype(np.int32),
            local_squared_distance=squared.cpu().numpy(),
            sizes=last.counts[self._occupied],
            inertia=[*self._inertia[:-1], total_inertia(self._rows, squared, self._extent)],
        )
