"""Hierarchical balanced sampling: a budget spread evenly over a hierarchy.

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
    """The budget flows from the coarsest level down, as evenly as sizes allow.

    At each cluster the target is poured over its children like water: all get the same amount, small ones fill up and pass
    the rest on. Of a finest cluster members are taken at random, with chances by the pool's scores, or by their distance to
    the centroid, and none twice before all once. Exactly `budget` rows with their repeats, or all that there are.
    """
    hierarchy, most = pool.hierarchy, config.max_repeats
    sizes = _sizes(hierarchy, pool.available)
    total = int(sizes[-1].sum())
    whole, goal = np.array([0, len(sizes[-1])]), np.array([min(budget, total * most)])
    targets = water_fill(sizes[-1] * most, whole, goal, rng_key=rng.key(rng_key, "top"))
    exhausted = {f"level_{len(sizes)}": int((targets == sizes[-1] * most).sum())}
    for depth in range(len(sizes) - 1, 0, -1):
        ids, offsets = grouped(hierarchy.levels[depth].assignment, len(targets))
        capacity = sizes[depth - 1] * most
        shares = water_fill(capacity[ids], offsets, targets, rng_key=rng.key(rng_key, "level", depth))
        targets = np.empty_like(shares)
        targets[ids] = shares
        exhausted[f"level_{depth}"] = int((targets == capacity).sum())
    tickets = _tickets(config, pool, rng.key(rng_key, "rows"))
    rows, repeats = draw(hierarchy.levels[0].assignment, sizes[0], targets, tickets, pool.available)
    return Selection(rows=rows, repeats=repeats, reason="balanced", counts={"exhausted": exhausted})


def _tickets(config: BalancedConfig, pool: Pool, rng_key: int) -> Tickets:
    """Who of a finest cluster is taken first."""
    if config.members in ("closest", "farthest"):
        return by_distance(pool.hierarchy.levels[0].squared_distance, farthest=config.members == "farthest")
    return by_chance(rng_key, pool.need_scores() if config.members == "weighted" else None)


def _sizes(hierarchy: ClusterHierarchy, available: np.ndarray | None) -> list[np.ndarray]:
    """(K,) for each level: the available rows under each cluster."""
    if available is None:
        return [level.sizes for level in hierarchy.levels]
    sizes = [sizes_of(hierarchy.levels[0], available)]
    for level in hierarchy.levels[1:]:
        sizes.append(np.bincount(level.assignment, weights=sizes[-1], minlength=level.num_clusters).astype(np.int64))
    return sizes
