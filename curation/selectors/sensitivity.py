"""Sensitivity sampling: rows drawn by a bound on their share of the loss, with weights that correct for the probability.

Axiotis et al., "Data-Efficient Learning via Clustering-Based Sensitivity Sampling: Foundation Models and Beyond", ICML 2024.
"""

from dataclasses import replace

import numpy as np

from curation.base import rng
from curation.base.errors import DataError
from curation.levels import Level
from curation.sampling.draw import by_distance, draw
from curation.selectors.config import SensitivityConfig
from curation.selectors.selection import Pool, Selection


def select(config: SensitivityConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """`budget` of the available rows x, drawn with probability in proportion to l(c) + coefficient * |x - c|^power.

    c is the centroid of x, and l(c) the score of the row nearest to c, or 0 where the pool has no scores. The paper draws
    with replacement and weights a row by 1 / (budget * its probability). Here no row is drawn twice, so the probability of
    being selected is at most 1, and a row is weighted by its inverse (Horvitz and Thompson, JASA 1952). Weights are scaled to
    a mean of 1: then a weighted mean is a ratio of two unbiased sums, whose own bias vanishes with the size of the selection.
    A row of mass 0, which equals a centroid whose loss is 0, can be selected only when all others are.

    Raises DataError if scores of rows nearest to a centroid are negative.
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
        raise DataError(
            f"Scores for sensitivity are losses and cannot be negative; found {centre.min():g}. Shift them, or give none."
        )
    return centre


def chances(mass: np.ndarray, num: int) -> np.ndarray:
    """(N,) float64: probability of each row to be among `num`, min(1, t * mass) for the t that makes them add up to `num`.

    Once all rows of positive mass are certain, rows of mass 0 share what remains evenly.
    """
    uncertain = np.ones(len(mass), dtype=bool)
    while True:
        remaining, total = num - np.count_nonzero(~uncertain), mass[uncertain].sum()
        if total > 0:
            chance = mass / total * remaining
        else:
            chance = np.full(len(mass), remaining / max(int(np.count_nonzero(uncertain)), 1))
        certain = uncertain & (chance >= 1)
        if not certain.any():
            return np.where(uncertain, chance, 1.0)
        uncertain &= ~certain


def fixed_size(chance: np.ndarray, tickets: np.ndarray, rng_key: int) -> np.ndarray:
    """Ascending indices into `chance` (N,), as many as the probabilities add up to, each drawn with its probability.

    Systematic sampling (Madow, "On the Theory of Systematic Sampling, II", Annals of Mathematical Statistics 1949): the
    probabilities are laid end to end in the order of `tickets` (N,), and points at distance 1, from a random start, select
    the intervals that they fall into. `rng_key` is the random key (`rng.key`).
    """
    certain, uncertain = np.flatnonzero(chance == 1), np.flatnonzero((chance > 0) & (chance < 1))
    num = round(chance[uncertain].sum())
    if num == 0:
        return certain
    uncertain = uncertain[np.argsort(tickets[uncertain], kind="stable")]
    ends = np.cumsum(chance[uncertain])
    number = np.arange(num)
    points = (rng.uniform(rng_key, np.zeros(1, dtype=np.int64))[0, 0] + number) * (ends[-1] / num)
    # Should rounding put two points into one interval, or the last one past the end, they take the next, or the last, interval.
    gaps = np.maximum.accumulate(np.searchsorted(ends, points, side="right") - number)
    return np.sort(np.concatenate([certain, uncertain[np.minimum(gaps, len(ends) - num) + number]]))
