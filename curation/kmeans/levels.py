"""A hierarchy of clusters, as arrays, and what is told while it is made."""

from dataclasses import dataclass

import numpy as np


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


@dataclass(frozen=True)
class HierarchyProgress:
    """What happens inside a level."""

    level: int
    """Counted from 1."""
    step: int
    """0 for the first k-means, then the resampling step."""
    iteration: int
    inertia: float
