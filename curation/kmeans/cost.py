"""What a clustering costs, and how many clusters suit a number of rows."""

from dataclasses import dataclass

import numpy as np

from curation.kmeans.config import ClusterConfig

_ROWS_PER_CLUSTER = 75
_SHRINK = (20, 10, 5)
"""How many times fewer clusters each further level has."""
_COARSEST = 20
_MOST_WHOLE = 1_000_000
_SPLITS = 100


@dataclass(frozen=True)
class LevelCost:
    """One level of hierarchical k-means."""

    num_items: int
    num_clusters: int
    num_resampled: int
    """Items of each cluster that a resampling step refits on."""
    flops: float
    """At the most: every k-means runs `max_iterations`, and every refit sees half the items."""
    num_bytes: int
    """That one worker holds: of a GPU with its rows on it, of the CPU without them."""


def costs(config: ClusterConfig, num_rows: int, dim: int, *, resident: bool = False) -> list[LevelCost]:
    """Of each level, for rows of `dim` numbers; `resident` if a worker's share of them stays on its device, as fp16."""
    found = []
    items = num_rows
    for level, num in enumerate(config.levels):
        splits = config.splits if level == 0 else 1
        whole = num // splits
        refits = 0 if items < 2 * whole else config.resampling_steps
        passes = (1 + refits / 2) * config.max_iterations + refits
        sample = min(items, max(20_000, 20 * whole))
        seeding = (2 + np.log(whole)) * sample * (1 + refits)
        inside = 0 if splits == 1 else splits * (items + 20 * num * 12)
        mine = -(-items // config.workers)
        held = 12 * mine + dim * (sample * 6 + num * 20) + (2 * dim * mine if resident else 0)
        flops = 2.0 * dim * (whole * (items * passes + seeding) + inside)
        found.append(LevelCost(items, num, max(2, round(items / num / 2)) if refits else 0, flops, held))
        items = num
    return found


def suggested(num_rows: int) -> ClusterConfig:
    """Levels for so many rows, in the proportions that were found to work.

    Vo et al. 2024 cluster 743 million images to 10M, 500k, 50k and 10k (section 4); DINOv3 (2025) begins with about as many
    rows a cluster.
    """
    levels = [_round(max(2, num_rows / _ROWS_PER_CLUSTER))]
    for shrink in _SHRINK:
        if levels[-1] / shrink >= _COARSEST:
            levels.append(_round(levels[-1] / shrink))
    splits = _SPLITS if levels[0] > _MOST_WHOLE else 1
    return ClusterConfig(levels=tuple(levels), splits=splits)


def _round(number: float) -> int:
    """To two digits."""
    step = 10 ** max(0, int(np.log10(number)) - 1)
    return int(round(number / step) * step)
