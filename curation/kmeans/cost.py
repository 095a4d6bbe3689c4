"""Estimates of what a clustering costs, and numbers of clusters that suit a number of rows."""

from dataclasses import dataclass

import numpy as np

from curation.kmeans.config import ClusterConfig

_ROWS_PER_CLUSTER = 75
_SHRINK = (20, 10, 5)
"""Ratios of the numbers of clusters of neighbouring levels, from the finest up."""
_COARSEST = 20
_MOST_WHOLE = 1_000_000
_SPLITS = 100


@dataclass(frozen=True)
class LevelCost:
    """Cost of one level of hierarchical k-means."""

    num_items: int
    """Items below: rows, or clusters of the level below."""
    num_clusters: int
    num_resampled: int
    """Items of each cluster that a resampling step refits on; 0 without resampling."""
    flops: float
    """Upper bound: as if every k-means ran `max_iterations` and every refit read half of the items."""
    num_bytes: int
    """Memory of one worker: on a GPU with its rows resident, on the CPU without them."""


def costs(config: ClusterConfig, num_rows: int, dim: int, *, resident: bool = False) -> list[LevelCost]:
    """The cost of each level for rows of `dim` numbers; with `resident` each worker keeps its rows on its device as fp16."""
    levels = []
    items = num_rows
    for depth, num in enumerate(config.levels, start=1):
        splits = config.splits if depth == 1 else 1
        whole = num // splits
        refits = 0 if items < 2 * whole else config.resampling_steps
        passes = (1 + refits / 2) * config.max_iterations + refits
        sample = min(items, max(20_000, 20 * whole))
        seeding = (2 + np.log(whole)) * sample * (1 + refits)
        inside = 0 if splits == 1 else splits * (items + 20 * num * 12)
        local = -(-items // config.workers)
        held = 8 * local + dim * (sample * 6 + num * 20) + (2 * dim * local if resident else 0)
        flops = 2.0 * dim * (whole * (items * passes + seeding) + inside)
        levels.append(LevelCost(items, num, max(2, round(items / num / 2)) if refits else 0, flops, held))
        items = num
    return levels


def suggested(num_rows: int) -> ClusterConfig:
    """Levels for `num_rows` rows, in proportions that are known to work.

    Vo et al. 2024 cluster 743 million images to 10M, 500k, 50k and 10k clusters (section 4); the finest level of DINOv3 (2025)
    has about as many rows per cluster.
    """
    levels = [_round(max(2, num_rows / _ROWS_PER_CLUSTER))]
    for shrink in _SHRINK:
        if levels[-1] / shrink >= _COARSEST:
            levels.append(_round(levels[-1] / shrink))
    splits = _SPLITS if levels[0] > _MOST_WHOLE else 1
    return ClusterConfig(levels=tuple(levels), splits=splits)


def _round(number: float) -> int:
    """`number` rounded to two significant digits."""
    step = 10 ** max(0, int(np.log10(number)) - 1)
    return int(round(number / step) * step)
