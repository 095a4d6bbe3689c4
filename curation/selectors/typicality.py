"""The most typical rows of every cluster: those where it is densest.

Hacohen et al., "Active Learning on a Budget: Opposite Strategies Suit High and Low Budgets", ICML 2022 (TypiClust).
"""

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.distance.exact import for_products
from curation.distance.nearest import default_device
from curation.embeddings.source import groups_of
from curation.sampling.allocation import water_fill
from curation.sampling.draw import by_distance, draw, sizes_of
from curation.selectors.config import TypicalityConfig
from curation.selectors.selection import Pool, Selection

_TILE = 2048


def select(config: TypicalityConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """The budget is spread evenly over the finest clusters, as sizes allow; of each its most typical rows, the first of equals.

    Typicality is the inverse of the mean distance to the nearest `neighbours` among the cluster's other available rows.
    The paper takes a row at a time and asks the rows not yet taken again, at the cost of one search a row; here it is asked
    once. There a cluster gives nothing if it is very small, and the clusters are as many as the budget.
    """
    level, source = pool.hierarchy.levels[0], pool.need_embeddings()
    sizes = sizes_of(level, pool.available)
    whole, goal = np.array([0, len(sizes)]), np.array([min(budget, pool.num_available)])
    amounts = water_fill(sizes, whole, goal, rng_key=rng.key(rng_key, "clusters"))
    # Of clusters that go in whole or not at all nothing need be read.
    partly = (amounts > 0) & (amounts < sizes)
    rows = np.flatnonzero(partly[level.assignment] & (True if pool.available is None else pool.available))
    rows = rows[np.argsort(level.assignment[rows], kind="stable")]
    asked = np.flatnonzero(partly)
    offsets = np.concatenate([[0], np.cumsum(sizes[asked])])
    distance, device = np.zeros(pool.num_rows, dtype=np.float32), default_device()
    for number, members in enumerate(groups_of(source, rows, offsets)):
        points = torch.from_numpy(members - level.centroids[asked[number]]).to(device)
        mean = neighbour_distance(points, min(config.neighbours, len(points) - 1))
        distance[rows[offsets[number] : offsets[number + 1]]] = mean.float().cpu().numpy()
    chosen, _ = draw(level.assignment, sizes, amounts, by_distance(distance), pool.available)
    return Selection.of(chosen, "typicality")


def neighbour_distance(points: Tensor, num: int) -> Tensor:
    """(M,) float64: the mean distance of each of `points` (M, D) to its nearest `num` others, from 1 to M - 1."""
    exact = for_products(points)
    norms = (exact * exact).sum(1)
    means = []
    for mine, my_norms in zip(exact.split(_TILE), norms.split(_TILE), strict=True):
        nearest = mine.new_empty(len(mine), 0)
        for others, other_norms in zip(exact.split(_TILE), norms.split(_TILE), strict=True):
            squared = (my_norms[:, None] + other_norms) - 2 * (mine @ others.T)
            nearest = torch.cat([nearest, squared], 1)
            nearest = nearest.topk(min(num + 1, nearest.shape[1]), largest=False).values
        # As products are exact, a row is at distance 0 from itself: the smallest is its own, or as good as its own.
        means.append(nearest[:, 1:].clamp_(min=0).sqrt().mean(1))
    return torch.cat(means)
