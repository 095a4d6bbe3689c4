"""Small hierarchies to select from."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.embeddings.source import ArraySource
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import build_hierarchy
from curation.levels import ClusterHierarchy, Level
from curation.selectors.select import select
from curation.selectors.selection import Pool


def clustered(rows: np.ndarray, levels: Sequence[int]) -> ClusterHierarchy:
    """A hierarchy of rows (N, D) by plain k-means."""
    return build_hierarchy(ArraySource(rows), ClusterConfig(levels=tuple(levels), resampling_steps=0), rng_key=1)


def hierarchy(num: int, seed: int = 0) -> ClusterHierarchy:
    """A hierarchy of two blobs, one of them four times as large, with a fifth as many clusters as rows."""
    draws = np.random.default_rng(seed)
    rows = np.concatenate([draws.normal(place, 0.1, (count, 2)) for place, count in ((0, num - num // 5), (5, num // 5))])
    return clustered(rows.astype(np.float16), [max(3, num // 5), 2])


KINDS = ("blobs", "copies", "equal", "lone")


def one_cluster(rows: np.ndarray) -> ClusterHierarchy:
    """A hierarchy with all rows in one cluster, whose centroid is the origin."""
    num, dim = rows.shape
    level = Level(
        centroids=np.zeros((1, dim), dtype=np.float32),
        assignment=np.zeros(num, dtype=np.int32),
        squared_distance=(rows.astype(np.float32) ** 2).sum(1),
        sizes=np.array([num]),
    )
    return ClusterHierarchy((level,))


@lru_cache(maxsize=256)
def example_pool(kind: str, num: int, seed: int = 0) -> tuple[np.ndarray, ClusterHierarchy]:
    """Rows (num, 3) and clusters of them: two blobs, few distinct rows, one row only, or as many clusters as rows."""
    draws = np.random.default_rng(seed)
    rows = {
        "blobs": np.concatenate([draws.normal(0, 1, (num - num // 5, 3)), draws.normal(4, 1, (num // 5, 3))]),
        "copies": draws.integers(1, 3, (num, 3)),
        "equal": np.full((num, 3), 0.3),
        "lone": draws.normal(0, 1, (num, 3)),
    }[kind].astype(np.float32)
    return rows, clustered(rows, [num if kind == "lone" else max(3, num // 8), 2])


def check_promises(config: Any, kind: str, num: int, seed: int, **inputs: Any) -> None:
    """Check the promises of all selectors: exactly the budget, ascending, of available rows, for any division into blocks."""
    rows, tree = example_pool(kind, num, seed)
    available = np.random.default_rng(seed + 1).random(num) < 0.7
    for mask in (None, available):
        pools = [
            Pool(hierarchy=tree, available=mask, embeddings=ArraySource(rows, block_rows=size), **inputs) for size in (1000, 7)
        ]
        selection, again = (select(config, pool, rng_key=seed) for pool in pools)
        assert len(selection.rows) == min(config.budget, pools[0].num_available)
        assert (np.diff(selection.rows) > 0).all()
        assert np.isin(selection.rows, np.arange(num) if mask is None else np.flatnonzero(mask)).all()
        assert (selection.repeats == 1).all()
        assert np.array_equal(selection.rows, again.rows)


promises = given(st.sampled_from(KINDS), st.integers(3, 90), st.integers(0, 5), st.integers(1, 100))
"""Cases for `check_promises`: a kind of rows, their number, a seed and a budget."""
