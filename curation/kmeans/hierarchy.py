"""Hierarchical k-means with resampling: level 1 clusters the rows, level t the centroids of level t - 1.

Vo et al., "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach", TMLR 2024. Plain k-means
puts centroids where rows are dense. Clustering the centroids again, and refitting each level on the same number of rows
from every cluster (resampling), moves them towards an even cover of the space the rows occupy.
"""

from collections.abc import Generator, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from curation.base import rng
from curation.base.collectives import Alone, Collectives, place_among
from curation.base.errors import ConfigError
from curation.base.journal import Journal
from curation.distance.nearest import Engine, default_device
from curation.embeddings.source import ArraySource, EmbeddingSource, SharedSource, Subset
from curation.kmeans.levels import HierarchyProgress, Level
from curation.kmeans.lloyd import Fit, KMeansResult, Progress, kmeans_steps
from curation.kmeans.splits import split_clusters


def hierarchical_kmeans(
    source: SharedSource,
    num_clusters: Sequence[int],
    *,
    rng_key: int,
    resampling_steps: int = 10,
    splits: int = 1,
    max_iterations: int = 50,
    tolerance: float = 1e-3,
    spherical: bool = False,
    done: Sequence[Level] = (),
    collectives: Collectives | None = None,
    journal: Journal | None = None,
    engine: Engine = "torch",
) -> Iterator["HierarchyProgress | Level"]:
    """Yield one level after another, finest first, for `num_clusters`, which must descend, and the progress in between.

    `source` is the whole of the rows on every worker, which reads its share of it; a level's assignment and distances are
    those of this worker's share of the items below. A level with fewer distinct items than asked gets as many clusters as
    there are, and a level that would not shrink the one below is left out, so there may be fewer levels than asked. With
    `splits` level 1 is made by k-means to so many times fewer clusters, each of which is then split into that many. `done`
    are the levels an earlier call yielded; only those that follow are made.
    """
    if any(upper >= lower for lower, upper in pairwise(num_clusters)):
        raise ConfigError(f"Levels must descend, each coarser than the one below; found {list(num_clusters)}.")
    workers, journal = collectives or Alone(), journal or Journal()
    levels = list(done)
    made = 0
    for depth, num in enumerate(num_clusters, start=1):
        if made and num >= levels[made - 1].num_clusters:
            continue
        made += 1
        if made <= len(done):
            continue
        items = (ArraySource(levels[-1].centroids) if levels else source).share(workers.rank, workers.size)
        parts = splits if depth == 1 else 1
        result = yield from _resampled_kmeans(
            items,
            max(1, num // parts),
            rng_key=rng.key(rng_key, "level", depth),
            resampling_steps=resampling_steps,
            options={
                "max_iterations": max_iterations,
                "tolerance": tolerance,
                "spherical": spherical,
                "collectives": workers,
                "engine": engine,
            },
            workers=workers,
            journal=journal.inner(f"level-{depth}"),
            depth=depth,
        )
        if parts > 1:
            result = split_clusters(
                source,
                items,
                result,
                parts,
                rng_key=rng.key(rng_key, "splits"),
                spherical=spherical,
                workers=workers,
                journal=journal.inner("splits"),
                device=default_device(),
            )
        sizes = result.sizes
        if levels:
            first, _ = place_among(workers, items.num_rows)
            below = levels[-1].sizes[first : first + items.num_rows]
            mine = np.bincount(result.assignment, weights=below, minlength=len(result.centroids))
            sizes = workers.sum(mine.astype(np.int64))
        levels.append(
            Level(
                centroids=result.centroids,
                assignment=result.assignment,
                squared_distance=result.squared_distance,
                sizes=sizes,
            )
        )
        yield levels[-1]


def _resampled_kmeans(
    items: EmbeddingSource,
    num_clusters: int,
    *,
    rng_key: int,
    resampling_steps: int,
    options: dict[str, Any],
    workers: Collectives,
    journal: Journal,
    depth: int,
) -> Generator[HierarchyProgress, None, KMeansResult]:
    """k-means, then `resampling_steps` times: refit on the closest items of every cluster and assign all items anew."""

    def fit(rows: EmbeddingSource, step: int) -> Generator[HierarchyProgress, None, Fit]:
        steps = kmeans_steps(
            rows, num_clusters, rng_key=rng.key(rng_key, step), journal=journal.inner(f"step-{step}"), **options
        )
        return (yield from _inside(depth, step, steps))

    def assign(centroids: np.ndarray, step: int) -> Generator[HierarchyProgress, None, KMeansResult]:
        only = {**options, "max_iterations": 0}
        steps = kmeans_steps(items, num_clusters, rng_key=rng_key, initial=centroids, **only)
        return (yield from _inside(depth, step, steps)).result()

    if saved := journal.load("resampling"):
        done = int(saved["step"])
        whole = yield from assign(saved["centroids"], done)
    else:
        done = 0
        whole = (yield from fit(items, 0)).result()
    for step in range(done + 1, resampling_steps + 1):
        mean_size = whole.sizes.sum() / len(whole.sizes)
        if mean_size < 2:
            break  # one item a cluster would only repeat the centroids
        # About half the mean cluster size, as the authors advise. All rows, weighted so that clusters count alike, would even
        # out two-dimensional toys further, but classes in learned embeddings less: single far rows then count as clusters do.
        kept = closest_items(whole, max(2, round(mean_size / 2)), workers)
        fitted = yield from fit(Subset(items, kept), step)
        whole = yield from assign(fitted.centroids, step)
        journal.save("resampling", step=np.array(step), centroids=whole.centroids)
    return whole


def _inside(depth: int, step: int, steps: Generator[Progress, None, Fit]) -> Generator[HierarchyProgress, None, Fit]:
    """The same, with every report saying where it comes from."""
    while True:
        try:
            progress = next(steps)
        except StopIteration as end:
            found: Fit = end.value
            return found
        yield HierarchyProgress(depth, step, progress.iteration, progress.inertia)


def closest_items(result: KMeansResult, per_cluster: int, workers: Collectives) -> np.ndarray:
    """Ascending indices of this worker's items among the `per_cluster` nearest to each centroid (all of a smaller cluster).

    Of equally near items the first in worker order count. Only numbers per cluster travel: all workers halve, for every
    cluster at once, the interval that its largest kept distance lies in.
    """
    num_clusters = len(result.sizes)
    # Distances are not negative, so their bits ascend with them.
    keys = result.assignment.astype(np.uint64) << np.uint64(32) | result.squared_distance.view(np.uint32)
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    cluster = np.arange(num_clusters, dtype=np.uint64) << np.uint64(32)
    starts = np.searchsorted(keys, cluster)

    def within(limit: np.ndarray) -> np.ndarray:
        """How many of this worker's items of each cluster have distance bits up to `limit` (K,)."""
        return np.searchsorted(keys, cluster + limit.astype(np.uint64), side="right") - starts

    wanted = np.minimum(per_cluster, result.sizes)
    low, high = np.full(num_clusters, -1), np.full(num_clusters, 2**32 - 1)
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = workers.sum(within(middle)) >= wanted
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    nearer = within(low) * (low >= 0)
    level = workers.gather(np.stack([nearer, within(high)], axis=1)[None])
    left = wanted - sum(counts[0, :, 0] for counts in level)
    before = sum((counts[0, :, 1] - counts[0, :, 0] for counts in level[: workers.rank]), np.zeros(num_clusters, np.int64))
    kept = nearer + np.clip(left - before, 0, within(high) - nearer)
    place = np.arange(len(keys)) - np.repeat(starts, np.diff([*starts, len(keys)]))
    return np.sort(order[place < kept[result.assignment[order]]])
