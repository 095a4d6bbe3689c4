"""Hierarchical k-means with resampling: level 1 clusters the rows, level t the centroids of level t - 1.

Vo et al., "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach", TMLR 2024. Plain k-means
puts centroids where rows are dense. Clustering the centroids again, and refitting each level on the same number of rows
from every cluster (resampling), moves them towards an even cover of the space the rows occupy.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from curation import rng
from curation.collectives import Alone, Collectives
from curation.errors import ConfigError
from curation.kmeans import KMeansResult, kmeans
from curation.source import ArraySource, EmbeddingSource, Subset


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level: K clusters over the M items below it (rows for level 1, the clusters of the level below otherwise)."""

    centroids: np.ndarray
    """(K, D) float32."""
    assignment: np.ndarray
    """(M,) int32: the cluster of each item below."""
    squared_distance: np.ndarray
    """(M,) float32: squared Euclidean distance to its centroid."""
    sizes: np.ndarray
    """(K,) int64: how many rows, not items, lie under each cluster."""

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    def children(self) -> tuple[np.ndarray, np.ndarray]:
        """Items grouped by cluster as CSR: offsets (K + 1,) and ids (M,), nearest to the centroid first."""
        ids = np.lexsort((self.squared_distance, self.assignment))
        counts = np.bincount(self.assignment, minlength=self.num_clusters)
        return np.concatenate([[0], np.cumsum(counts)]), ids


@dataclass(frozen=True)
class ClusterHierarchy:
    """Levels from the rows upwards."""

    levels: tuple[Level, ...]

    def labels(self, level: int) -> np.ndarray:
        """(N,) int32: the cluster of every row at `level`, counted from 1 as in the paper."""
        labels = self.levels[0].assignment
        for upper in self.levels[1:level]:
            labels = upper.assignment[labels]
        return labels


def hierarchical_kmeans(
    source: EmbeddingSource,
    num_clusters: Sequence[int],
    *,
    stream: int,
    resampling_steps: int = 10,
    max_iterations: int = 50,
    done: Sequence[Level] = (),
    collectives: Collectives | None = None,
) -> Iterator[Level]:
    """Yield one level after another, finest first, for `num_clusters`, which must descend.

    A level with fewer distinct items than asked gets as many clusters as there are, and a level that would not shrink the
    one below is left out, so there may be fewer levels than asked. `done` are the levels an earlier call yielded; only those
    that follow are made.
    """
    if any(upper >= lower for lower, upper in pairwise(num_clusters)):
        raise ConfigError(f"Levels must descend, each coarser than the one below; found {list(num_clusters)}.")
    levels = list(done)
    made = 0
    for depth, num in enumerate(num_clusters, start=1):
        if made and num >= levels[made - 1].num_clusters:
            continue
        made += 1
        if made <= len(done):
            continue
        items = ArraySource(levels[-1].centroids) if levels else source
        result = _resampled_kmeans(
            items,
            num,
            stream=rng.key(stream, "level", depth),
            resampling_steps=resampling_steps,
            max_iterations=max_iterations,
            # Centroids fit in memory everywhere: above level 1 every worker does the same work alone.
            workers=(collectives or Alone()) if made == 1 else Alone(),
        )
        below = levels[-1].sizes if levels else None
        rows = np.bincount(result.assignment, weights=below, minlength=len(result.centroids)).astype(np.int64)
        levels.append(
            Level(
                centroids=result.centroids,
                assignment=result.assignment,
                squared_distance=result.squared_distance,
                sizes=rows,
            )
        )
        yield levels[-1]


def _resampled_kmeans(
    items: EmbeddingSource,
    num_clusters: int,
    *,
    stream: int,
    resampling_steps: int,
    max_iterations: int,
    workers: Collectives,
) -> KMeansResult:
    """k-means, then `resampling_steps` times: refit on the closest rows of every cluster and assign all rows anew."""
    whole = kmeans(items, num_clusters, stream=rng.key(stream, 0), max_iterations=max_iterations, collectives=workers)
    for step in range(1, resampling_steps + 1):
        # About half the mean cluster size, as the authors advise; below two a refit would only repeat the centroids.
        closest = items.num_rows // (2 * len(whole.centroids))
        if closest < 2:
            break
        kept = np.sort(closest_rows(whole, closest))
        fitted = kmeans(
            Subset(items, kept),
            num_clusters,
            stream=rng.key(stream, step),
            max_iterations=max_iterations,
            collectives=workers,
        )
        whole = kmeans(items, num_clusters, stream=stream, max_iterations=0, initial=fitted.centroids, collectives=workers)
    return whole


def closest_rows(result: KMeansResult, per_cluster: int) -> np.ndarray:
    """Indices of the `per_cluster` rows nearest to each centroid (all of a smaller cluster), cluster by cluster."""
    ids = np.lexsort((result.squared_distance, result.assignment))
    first = np.concatenate([[0], np.cumsum(result.sizes)[:-1]])
    place = np.arange(len(ids)) - np.repeat(first, result.sizes)
    return ids[place < per_cluster]
