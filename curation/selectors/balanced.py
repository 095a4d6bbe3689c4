"""Hierarchical balanced sampling: a budget spread evenly over a hierarchy of clusters.

Vo et al., "Automatic Data Curation for Self-Supervised Learning: A Clustering-Based Approach", TMLR 2024, section 3.3.
"""

import numpy as np

from curation.base import rng
from curation.kmeans.levels import ClusterHierarchy
from curation.sampling.allocation import water_fill
from curation.sampling.draw import Tickets, by_chance, by_distance, draw, grouped, sizes_of
from curation.selectors.config import BalancedConfig
from curation.selectors.selection import Pool, Selection


def select(config: BalancedConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """The budget shared from the coarsest level down, as evenly as sizes allow.

    The target of each cluster is shared over its children like water poured into vessels: all get the same amount, small ones
    fill up and the rest goes to the others. From a finest cluster rows are taken at random, with probability in proportion to
    the pool's scores, or by their distance to the centroid, and no row twice before all rows once. Selects exactly `budget`
    rows, counting repeats, or all that there are.
    """
    hierarchy, max_repeats = pool.hierarchy, config.max_repeats
    sizes = _sizes(hierarchy, pool.available)
    total = int(sizes[-1].sum())
    one_group, target = np.array([0, len(sizes[-1])]), np.array([min(budget, total * max_repeats)])
    targets = water_fill(sizes[-1] * max_repeats, one_group, target, rng_key=rng.key(rng_key, "top"))
    exhausted = {f"level_{len(sizes)}": int((targets == sizes[-1] * max_repeats).sum())}
    for depth in range(len(sizes) - 1, 0, -1):
        ids, offsets = grouped(hierarchy.levels[depth].assignment, len(targets))
        capacity = sizes[depth - 1] * max_repeats
        shares = water_fill(capacity[ids], offsets, targets, rng_key=rng.key(rng_key, "level", depth))
        targets = np.empty_like(shares)
        targets[ids] = shares
        exhausted[f"level_{depth}"] = int((targets == capacity).sum())
    tickets = _tickets(config, pool, rng.key(rng_key, "rows"))
    rows, repeats = draw(hierarchy.levels[0].assignment, sizes[0], targets, tickets, pool.available)
    return Selection(rows=rows, repeats=repeats, reason="balanced", counts={"exhausted": exhausted})


def _tickets(config: BalancedConfig, pool: Pool, rng_key: int) -> Tickets:
    """The order in which the rows of a finest cluster are taken."""
    if config.members in ("closest", "farthest"):
        return by_distance(pool.hierarchy.levels[0].squared_distance, farthest=config.members == "farthest")
    return by_chance(rng_key, pool.need_scores() if config.members == "weighted" else None)


def _sizes(hierarchy: ClusterHierarchy, available: np.ndarray | None) -> list[np.ndarray]:
    """(K,) int64 for each level: the number of available rows under each cluster."""
    if available is None:
        return [level.sizes for level in hierarchy.levels]
    sizes = [sizes_of(hierarchy.levels[0], available)]
    for level in hierarchy.levels[1:]:
        sizes.append(np.bincount(level.assignment, weights=sizes[-1], minlength=level.num_clusters).astype(np.int64))
    return sizes
