"""Repeated random sampling: a fresh random subset for every epoch.

Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024.
"""

from dataclasses import replace

from curation.selectors.config import Rs2Config
from curation.selectors.selection import Pool, Selection


def select(config: Rs2Config, pool: Pool, budget: int, *, rng_key: int) -> Selection:  # noqa: ARG001  the signature of all selectors
    """All available rows, of which each epoch shows `budget`, drawn without replacement."""
    rows = pool.available_rows()
    return replace(Selection.of(rows, "rs2"), per_epoch=min(budget, len(rows)))
