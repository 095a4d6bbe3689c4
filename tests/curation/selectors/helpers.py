"""Small hierarchies to select from."""

from collections.abc import Sequence

import numpy as np

from curation.hierarchy import ClusterHierarchy, Level, hierarchical_kmeans
from curation.source import ArraySource


def clustered(rows: np.ndarray, levels: Sequence[int]) -> ClusterHierarchy:
    events = hierarchical_kmeans(ArraySource(rows), levels, stream=1, resampling_steps=0)
    return ClusterHierarchy(tuple(event for event in events if isinstance(event, Level)))


def hierarchy(num: int, seed: int = 0) -> ClusterHierarchy:
    """Two blobs, one of them four times as large, in a fifth as many clusters as rows."""
    draws = np.random.default_rng(seed)
    rows = np.concatenate([draws.normal(place, 0.1, (count, 2)) for place, count in ((0, num - num // 5), (5, num // 5))])
    return clustered(rows.astype(np.float16), [max(3, num // 5), 2])
