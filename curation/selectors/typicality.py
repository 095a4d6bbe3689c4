"""Typicality: the rows of every cluster that lie where it is densest.

Hacohen et al., "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML 2022 (TypiClust).
"""

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.base.device import default_device
from curation.distance.exact import for_products
from curation.embeddings.source import groups_of
from curation.sampling.allocation import water_fill
from curation.sampling.draw import by_distance, draw, sizes_of
from curation.selectors.config import TypicalityConfig
from curation.selectors.selection import Pool, Selection

_TILE = 2048
"""Rows on each side of a block of distances."""


def select(config: TypicalityConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """The most typical rows of each finest cluster, the first of equals; the budget is spread evenly, as sizes allow.

    Typicality is the inverse of the mean distance to the nearest `neighbours` among the cluster's other available rows.
    The paper selects one row at a time and recomputes typicality among the rows not selected yet; here it is computed once.
    The paper also makes as many clusters as the budget and skips very small ones.
    """
    level, source = pool.hierarchy.levels[0], pool.need_embeddings()
    sizes = sizes_of(level, pool.available)
    one_group, target = np.array([0, len(sizes)]), np.array([min(budget, pool.num_available)])
    amounts = water_fill(sizes, one_group, target, rng_key=rng.key(rng_key, "clusters"))
    # Embeddings are read only for clusters that give some but not all of their rows.
    is_partial = (amounts > 0) & (amounts < sizes)
    rows = np.flatnonzero(is_partial[level.assignment] & (True if pool.available is None else pool.available))
    rows = rows[np.argsort(level.assignment[rows], kind="stable")]
    partial = np.flatnonzero(is_partial)
    offsets = np.concatenate([[0], np.cumsum(sizes[partial])])
    distance, device = np.zeros(pool.num_rows, dtype=np.float32), default_device()
    for number, members in enumerate(groups_of(source, rows, offsets)):
        points = torch.from_numpy(members - level.centroids[partial[number]]).to(device)
        mean = neighbour_distance(points, min(config.neighbours, len(points) - 1))
        distance[rows[offsets[number] : offsets[number + 1]]] = mean.float().cpu().numpy()
    chosen, _ = draw(level.assignment, sizes, amounts, by_distance(distance), pool.available)
    return Selection.of(chosen, "typicality")


def neighbour_distance(points: Tensor, num: int) -> Tensor:
    """(M,) float64: mean distance of each of `points` (M, D) to its nearest `num` other points, with 1 <= num <= M - 1."""
    exact = for_products(points)
    norms = (exact * exact).sum(1)
    means = []
    for block, block_norms in zip(exact.split(_TILE), norms.split(_TILE), strict=True):
        nearest = block.new_empty(len(block), 0)
        for others, other_norms in zip(exact.split(_TILE), norms.split(_TILE), strict=True):
            squared = (block_norms[:, None] + other_norms) - 2 * (block @ others.T)
            nearest = torch.cat([nearest, squared], 1)
            nearest = nearest.topk(min(num + 1, nearest.shape[1]), largest=False).values
        # Products are exact, so a point is at distance 0 from itself: the smallest distance is that one, or equal to it.
        means.append(nearest[:, 1:].clamp_(min=0).sqrt().mean(1))
    return torch.cat(means)
