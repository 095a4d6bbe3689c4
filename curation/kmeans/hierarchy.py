"""Hierarchical k-means with resampling: level 1 clusters the rows, level t the centroids of level t - 1.

Vo et al., "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach", TMLR 2024. Plain k-means
puts centroids where rows are dense. Clustering the centroids again, and refitting each level on the same number of rows
from every cluster (resampling), moves them towards an even cover of the space the rows occupy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from curation.base import rng
from curation.base.collectives import Alone, Collectives, place_among
from curation.base.journal import Journal
from curation.embeddings.source import ArraySource, EmbeddingSource, SharedSource, Subset
from curation.kmeans.config import ClusterConfig
from curation.kmeans.lloyd import KMeans, KMeansOptions, KMeansResult
from curation.kmeans.splits import split_clusters
from curation.levels import ClusterHierarchy, HierarchyProgress, Level, LevelShare


def hierarchical_kmeans(
    source: SharedSource,
    config: ClusterConfig,
    *,
    rng_key: int,
    done: Sequence[Level] = (),
    collectives: Collectives | None = None,
    journal: Journal | None = None,
) -> Iterator[HierarchyProgress | LevelShare]:
    """Yield this worker's share of one level after another, finest first, and the progress in between.

    `source` is the whole of the rows on every worker, already normalised if `config` says so; each worker reads its share.
    A level with fewer distinct items than clusters asked for gets as many clusters as there are distinct items, and a level
    that would not have fewer clusters than the one below is left out, so there may be fewer levels than asked for. `done` are
    the levels that an earlier call made; only those that follow are made. `rng_key` is the random key (`rng.key`).

    Raises DataError for an empty source and for NaN or infinite rows.
    """
    workers, journal = collectives or Alone(), journal or Journal()
    options = KMeansOptions(
        max_iterations=config.max_iterations, tolerance=config.tolerance, spherical=config.spherical, engine=config.engine
    )
    below: Level | LevelShare | None = None
    num_levels = 0
    for depth, num_clusters in enumerate(config.levels, start=1):
        if below is not None and num_clusters >= below.num_clusters:
            continue
        num_levels += 1
        if num_levels <= len(done):
            below = done[num_levels - 1]
            continue
        items = (source if below is None else ArraySource(below.centroids)).share(workers.rank, workers.size)
        splits = config.splits if depth == 1 else 1
        level = _ResampledKMeans(
            items,
            max(1, num_clusters // splits),
            depth=depth,
            rng_key=rng.key(rng_key, "level", depth),
            resampling_steps=config.resampling_steps,
            options=options,
            workers=workers,
            journal=journal.inner(f"level-{depth}"),
        )
        yield from level.passes()
        result = level.result
        if splits > 1:
            result = split_clusters(
                source,
                items,
                result,
                splits,
                rng_key=rng.key(rng_key, "splits"),
                spherical=config.spherical,
                workers=workers,
                journal=journal.inner("splits"),
            )
        sizes = result.sizes
        if below is not None:
            first, _ = place_among(workers, items.num_rows)
            item_sizes = below.sizes[first : first + items.num_rows]
            local_sizes = np.bincount(result.local_assignment, weights=item_sizes, minlength=len(result.centroids))
            sizes = workers.sum(local_sizes.astype(np.int64))
        below = LevelShare(
            centroids=result.centroids,
            local_assignment=result.local_assignment,
            local_squared_distance=result.local_squared_distance,
            sizes=sizes,
        )
        yield below


def build_hierarchy(source: SharedSource, config: ClusterConfig, *, rng_key: int) -> ClusterHierarchy:
    """The whole hierarchy, made by one worker in memory; arguments and errors are those of `hierarchical_kmeans`."""
    events = hierarchical_kmeans(source, config, rng_key=rng_key)
    return ClusterHierarchy(tuple(event.whole() for event in events if isinstance(event, LevelShare)))


class _ResampledKMeans:
    """The k-means of one level: a first one, then in each resampling step a refit on the closest items of every cluster."""

    result: KMeansResult
    """The clusters of all items; set when `passes` has ended."""

    def __init__(
        self,
        items: EmbeddingSource,
        num_clusters: int,
        *,
        depth: int,
        rng_key: int,
        resampling_steps: int,
        options: KMeansOptions,
        workers: Collectives,
        journal: Journal,
    ) -> None:
        self._items, self._num_clusters = items, num_clusters
        self._depth, self._rng_key = depth, rng_key
        self._resampling_steps, self._options = resampling_steps, options
        self._workers, self._journal = workers, journal

    def passes(self) -> Iterator[HierarchyProgress]:
        """Run pass by pass, continuing after the last resampling step in the journal."""
        num_done = 0
        if saved := self._journal.load("resampling"):
            num_done = int(saved["step"])
            yield from self._assign(saved["centroids"], num_done)
        else:
            first = self._kmeans(self._items, 0)
            yield from self._reports(first, 0)
            self.result = first.fit.result()
        for step in range(num_done + 1, self._resampling_steps + 1):
            mean_size = self.result.sizes.sum() / len(self.result.sizes)
            if mean_size < 2:
                break  # one item a cluster would only repeat the centroids
            # About half the mean cluster size, as the authors advise. All rows, weighted so that clusters count equally, would
            # even out two-dimensional toys further, but classes in learned embeddings less: single far rows then count as much
            # as clusters do.
            closest = closest_items(self.result, max(2, round(mean_size / 2)), self._workers)
            refit = self._kmeans(Subset(self._items, closest), step)
            yield from self._reports(refit, step)
            yield from self._assign(refit.fit.centroids, step)
            self._journal.save("resampling", step=np.array(step), centroids=self.result.centroids)

    def _kmeans(self, items: EmbeddingSource, step: int) -> KMeans:
        return KMeans(
            items,
            self._num_clusters,
            rng_key=rng.key(self._rng_key, step),
            options=self._options,
            collectives=self._workers,
            journal=self._journal.inner(f"step-{step}"),
        )

    def _assign(self, centroids: np.ndarray, step: int) -> Iterator[HierarchyProgress]:
        """Assign all items to `centroids` (K, D), which sets `result`."""
        assign = KMeans(
            self._items,
            self._num_clusters,
            rng_key=self._rng_key,
            options=replace(self._options, max_iterations=0),
            initial=centroids,
            collectives=self._workers,
        )
        yield from self._reports(assign, step)
        self.result = assign.fit.result()

    def _reports(self, kmeans: KMeans, step: int) -> Iterator[HierarchyProgress]:
        """Run `kmeans`, yielding its progress as that of this level and step."""
        for report in kmeans.passes():
            yield HierarchyProgress(self._depth, step, report.iteration, report.inertia)


def closest_items(result: KMeansResult, per_cluster: int, workers: Collectives) -> np.ndarray:
    """Ascending indices of this worker's items among the `per_cluster` nearest to each centroid (all of a smaller cluster).

    Of equally near items the first in worker order count. Only numbers per cluster travel: all workers halve, for every
    cluster at once, the interval that its largest kept distance lies in.
    """
    num_clusters = len(result.sizes)
    # Distances are not negative, so their bits ascend with them.
    keys = result.local_assignment.astype(np.uint64) << np.uint64(32) | result.local_squared_distance.view(np.uint32)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    cluster = np.arange(num_clusters, dtype=np.uint64) << np.uint64(32)
    starts = np.searchsorted(keys, cluster)

    def counts_within(limit: np.ndarray) -> np.ndarray:
        """(K,): number of this worker's items of each cluster with distance bits up to `limit` (K,)."""
        return np.searchsorted(keys, cluster + limit.astype(np.uint64), side="right") - starts

    targets = np.minimum(per_cluster, result.sizes)
    low, high = np.full(num_clusters, -1), np.full(num_clusters, 2**32 - 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = workers.sum(counts_within(middle)) >= targets
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    nearer = counts_within(low) * (low >= 0)
    counts = workers.gather(np.stack([nearer, counts_within(high)], axis=1)[None])
    # Items at exactly the limit share what the nearer ones leave, those on workers of smaller rank first.
    open_places = targets - sum(of_worker[0, :, 0] for of_worker in counts)
    at_limit = [of_worker[0, :, 1] - of_worker[0, :, 0] for of_worker in counts[: workers.rank]]
    num_before = sum(at_limit, np.zeros(num_clusters, np.int64))
    num_kept = nearer + np.clip(open_places - num_before, 0, counts_within(high) - nearer)
    position = np.arange(len(keys)) - np.repeat(starts, np.diff([*starts, len(keys)]))
    return np.sort(order[position < num_kept[result.local_assignment[order]]])
