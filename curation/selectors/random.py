"""Uniform sampling: the baseline that curation must beat."""

import numpy as np

from curation.base import rng
from curation.selectors.config import RandomConfig
from curation.selectors.selection import Pool, Selection


def select(config: RandomConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:  # noqa: ARG001  the signature of all selectors
    """`budget` of the available rows, drawn uniformly without replacement."""
    num = pool.num_available
    rows = rng.permute(rng_key, np.arange(min(budget, num)), num)
    return Selection.of(rows if pool.available is None else np.flatnonzero(pool.available)[rows], "random")
