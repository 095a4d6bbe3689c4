"""A hierarchy of clusters as arrays, and the events of making one."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level: K clusters of the M items below it (rows for level 1, the clusters of the level below otherwise)."""

    centroids: np.ndarray
    """(K, D) float32."""
    assignment: np.ndarray
    """(M,) int32: the cluster of each item below."""
    squared_distance: np.ndarray
    """(M,) float32: squared Euclidean distance of each item to its centroid."""
    sizes: np.ndarray
    """(K,) int64: number of rows, not items, under each cluster."""

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    def children(self) -> tuple[np.ndarray, np.ndarray]:
        """Items grouped by cluster as CSR: offsets (K + 1,) and ids (M,), nearest to the centroid first."""
        ids = np.lexsort((self.squared_distance, self.assignment))
        counts = np.bincount(self.assignment, minlength=self.num_clusters)
        return np.concatenate([[0], np.cumsum(counts)]), ids


@dataclass(frozen=True, kw_only=True)
class LevelShare:
    """A level as one of several workers knows it when it is made: all clusters, and the clusters of its m items below.

    Workers hold items in the order of their ranks, so the arrays of all of them in a row are those of the `Level`.
    """

    centroids: np.ndarray
    """(K, D) float32."""
    local_assignment: np.ndarray
    """(m,) int32: the cluster of each item of this worker."""
    local_squared_distance: np.ndarray
    """(m,) float32: squared Euclidean distance of each item of this worker to its centroid."""
    sizes: np.ndarray
    """(K,) int64: number of rows of all workers under each cluster."""

    @property
    def num_clusters(self) -> int:
        return len(self.centroids)

    def whole(self) -> Level:
        """The level, where there is one worker and its share is everything."""
        return Level(
            centroids=self.centroids,
            assignment=self.local_assignment,
            squared_distance=self.local_squared_distance,
            sizes=self.sizes,
        )


@dataclass(frozen=True)
class ClusterHierarchy:
    """Levels of clusters, the finest first."""

    levels: tuple[Level, ...]

    def labels(self, level: int) -> np.ndarray:
        """(N,) int32: the cluster of every row at `level`, which is counted from 1."""
        labels = self.levels[0].assignment
        for upper in self.levels[1:level]:
            labels = upper.assignment[labels]
        return labels


@dataclass(frozen=True)
class HierarchyProgress:
    """State of a hierarchical k-means after a pass over the items of a level."""

    level: int
    """Number of the level, from 1."""
    step: int
    """0 for the first k-means of the level, then the number of the resampling step."""
    iteration: int
    """Number of the pass within the k-means, from 1."""
    inertia: float
