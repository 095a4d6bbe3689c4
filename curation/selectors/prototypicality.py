"""Prototypicality: the hard rows, which lie far from their centroid (their prototype), or the easy ones, which lie near it.

Sorscher et al., "Beyond Neural Scaling Laws: Beating Power Law Scaling via Data Pruning", NeurIPS 2022: the
self-supervised metric.
"""

import numpy as np

from curation.selectors.config import PrototypicalityConfig
from curation.selectors.selection import Pool, Selection


def select(config: PrototypicalityConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:  # noqa: ARG001  the signature of all selectors
    """`budget` of the available rows, by their distance to their centroid over the whole pool; of equal ones the first."""
    rank = np.array(pool.hierarchy.levels[0].squared_distance)
    if config.keep == "hard":
        np.negative(rank, out=rank)
    if pool.available is not None:
        rank[~pool.available] = np.inf
    num = min(budget, pool.num_available)
    last = np.partition(rank, num - 1)[num - 1] if num else -np.inf
    before_last, tied = np.flatnonzero(rank < last), np.flatnonzero(rank == last)
    return Selection.of(np.concatenate([before_last, tied[: num - len(before_last)]]), "prototypicality")
