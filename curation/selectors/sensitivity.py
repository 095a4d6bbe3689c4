"""Sensitivity sampling: chances by how much a row may weigh in the loss, and weights that make up for the chances.

Axiotis et al., "Data-Efficient Learning via Clustering-Based Sensitivity Sampling: Foundation Models and Beyond", ICML 2024.
"""

from dataclasses import replace

import numpy as np

from curation.base import rng
from curation.base.errors import DataError
from curation.kmeans.levels import Level
from curation.sampling.draw import by_distance, draw
from curation.selectors.config import SensitivityConfig
from curation.selectors.selection import Pool, Selection


def select(config: SensitivityConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """`budget` of the available rows, with chances in proportion to l(c) + coefficient * |x - c|^power.

    c is the centroid of x, and l(c) the score of the row nearest to it, or 0 where the pool has no scores. The paper draws
    with replacement and weights a row by 1 / (budget * its probability). Here no row is drawn twice, so the chance to be in
    is at most 1, and a row is weighted by 1 / that chance (Horvitz and Thompson, JASA 1952). Weights are scaled to a mean
    of 1: then a weighted mean is a ratio of two unbiased sums, whose own bias vanishes with the size of the selection.
    A row without any mass, which equals a centroid of no loss, has a chance only when all others are in.
    """
    level = pool.hierarchy.levels[0]
    rows = pool.available_rows()
    mass = config.coefficient * level.squared_distance[rows].astype(np.float64) ** (config.power / 2)
    if pool.scores is not None:
        mass += _centre_scores(level, pool.scores)[level.assignment[rows]]
    chance = chances(mass, min(budget, len(rows)))
    taken = fixed_size(chance, rng.tickets(rng.key(rng_key, "order"), 0, pool.num_rows)[rows], rng.key(rng_key, "start"))
    weights = 1 / chance[taken]
    weights *= len(weights) / max(float(weights.sum()), 1)
    selection = Selection.of(rows[taken], "sensitivity", certain=int(np.count_nonzero(chance == 1)))
    return replace(selection, weights=weights.astype(np.float32))


def _centre_scores(level: Level, scores: np.ndarray) -> np.ndarray:
    """(K,) float64: the score of the row nearest to each centroid, available or not."""
    nearest, _ = draw(level.assignment, level.sizes, np.minimum(level.sizes, 1), by_distance(level.squared_distance), None)
    centre = np.zeros(level.num_clusters)
    centre[level.assignment[nearest]] = scores[nearest]
    if (centre < 0).any():
        raise DataError(f"Scores that are losses cannot be negative; found {centre.min():g}. Shift them, or leave them out.")
    return centre


def chances(mass: np.ndarray, num: int) -> np.ndarray:
    """(N,) float64: the chance of each row to be among `num`, min(1, t * mass) for the t that makes them add up to `num`.

    Once all rows with any mass are in for sure, what is left is shared evenly.
    """
    unsure = np.ones(len(mass), dtype=bool)
    while True:
        left, total = num - np.count_nonzero(~unsure), mass[unsure].sum()
        chance = mass / total * left if total > 0 else np.full(len(mass), left / max(int(np.count_nonzero(unsure)), 1))
        sure = unsure & (chance >= 1)
        if not sure.any():
            return np.where(unsure, chance, 1.0)
        unsure &= ~sure


def fixed_size(chance: np.ndarray, tickets: np.ndarray, rng_key: int) -> np.ndarray:
    """Ascending places in `chance` (N,), as many as the chances add up to, each place with its chance.

    Systematic sampling (Madow, "On the Theory of Systematic Sampling, II", Annals of Mathematical Statistics 1949): chances
    are laid end to end in the order of `tickets` (N,), and points one apart, from a random start, take those they fall on.
    """
    sure, unsure = np.flatnonzero(chance == 1), np.flatnonzero((chance > 0) & (chance < 1))
    num = round(chance[unsure].sum())
    if num == 0:
        return sure
    unsure = unsure[np.argsort(tickets[unsure], kind="stable")]
    ends = np.cumsum(chance[unsure])
    number = np.arange(num)
    points = (rng.uniform(rng_key, np.zeros(1, dtype=np.int64))[0, 0] + number) * (ends[-1] / num)
    # Should rounding let two points fall on one place, or the last one past the end, they take the next, or the one before.
    gaps = np.maximum.accumulate(np.searchsorted(ends, points, side="right") - number)
    return np.sort(np.concatenate([sure, unsure[np.minimum(gaps, len(ends) - num) + number]]))
