"""Seeds for k-means: rows far from one another, in places where there are many rows."""

import math

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.base.journal import Journal
from curation.base.threads import one_thread
from curation.distance.nearest import NearestCentroid, coarse_dtype, squared_distance
from curation.kmeans.grouped import grouped_kmeans
from curation.sampling.allocation import apportion

_PROPOSALS = 256
"""Maximum number of points proposed as seeds at once."""
_PRODUCT = 2**24
"""Distances held at once."""
_SAME = 2e-6
"""Share of |x|² up to which a squared distance is rounding error."""


def plus_plus(
    points: Tensor, num_seeds: int, *, rng_key: int, weights: Tensor | None = None, journal: Journal | None = None
) -> np.ndarray:
    """Greedy k-means++: indices (K,) into `points` (M, D) float32, fewer than `num_seeds` if fewer points are distinct.

    Each seed is the best of 2 + ln K points drawn with probability in proportion to weight (M,) times squared distance to the
    nearest seed so far (Arthur and Vassilvitskii, "k-means++", SODA 2007, with the greedy choice they describe). The first
    quarter of the seeds is drawn from a quarter of the points and the second from half of them: few seeds need few points.
    `rng_key` is the random key (`rng.key`).
    """
    journal = journal or Journal()
    saved = journal.load("seeding")
    chosen, last_step = (saved["chosen"], int(saved["step"])) if saved else (np.empty(0, np.int64), 8)
    trials = 2 + int(math.log(max(1, min(num_seeds, len(points)))))
    for step in (4, 2, 1):
        if step < last_step:
            thinned = points[::step], None if weights is None else weights[::step]
            num = min(num_seeds // step, len(thinned[0]))
            chosen = step * _extend((chosen // step).tolist(), *thinned, num, trials, rng.key(rng_key, step))
            journal.save("seeding", chosen=chosen, step=np.array(step))
    return chosen


def _extend(chosen: list[int], points: Tensor, weights: Tensor | None, num_seeds: int, trials: int, rng_key: int) -> np.ndarray:
    """The seeds `chosen` and more, each the best of `trials` draws: indices (`num_seeds`,), fewer if no more points differ.

    Points are proposed many at a time, with probabilities by the distances at that time, so that their distances are one
    matrix product. Later a proposal is accepted with the ratio of its current distance to its distance when proposed as
    probability, which makes it a draw by current distances. Products are bfloat16 while distances are large compared with
    its rounding.
    """
    if len(chosen) >= num_seeds:
        return np.array(chosen, dtype=np.int64)
    norms = (points * points).sum(1)
    if not chosen:
        first_mass = torch.ones_like(norms) if weights is None else weights
        chosen = _draw(first_mass, 1, rng.generator(rng.key(rng_key, "first"))).tolist()
    mass = norms if weights is None else norms * weights
    dtype = coarse_dtype(points.device)
    seeds = _Seeds(points, norms, dtype)
    nearest = seeds.nearest(chosen)
    round_number = 0
    while len(chosen) < num_seeds:
        draws = rng.generator(rng.key(rng_key, round_number))
        round_number += 1
        squared = nearest + norms
        squared[squared <= _SAME * norms] = 0  # a point equal to a seed, up to rounding, must not be chosen again
        if weights is not None:
            squared *= weights
        potential = float(squared.double().sum())
        if dtype != torch.float32 and potential < float(mass.double().sum()) / 32:
            dtype = torch.float32
            seeds = _Seeds(points, norms, dtype)
            nearest = seeds.nearest(chosen)
            continue
        if potential <= 0:
            break
        num = max(trials, min(_PROPOSALS, trials * len(chosen), _PRODUCT // len(points)))
        proposed = _draw(squared, num, draws)
        distances = seeds.distances(proposed)
        accepts = draws.random(num) * (nearest + norms)[proposed].cpu().numpy()
        next_proposal, num_before = 0, len(chosen)
        with one_thread():
            while len(chosen) < num_seeds:
                remaining = proposed[next_proposal:]
                distance = nearest[remaining] + norms[remaining]
                limit = torch.where(distance > _SAME * norms[remaining], distance, -1).cpu().numpy()
                accepted = np.flatnonzero(accepts[next_proposal:] <= limit)[:trials] + next_proposal
                if len(accepted) < (trials if next_proposal else 1):
                    break  # too few proposals remain: propose anew
                next_proposal = int(accepted[-1]) + 1
                of_accepted = distances.index_select(0, torch.from_numpy(accepted).to(points.device)).float()
                lower = torch.minimum(of_accepted, nearest)
                best = int((lower.sum(1) if weights is None else lower @ weights).argmin())
                chosen.append(int(proposed[accepted[best]]))
                nearest = lower[best]
                nearest[chosen[-1]] = -norms[chosen[-1]]
        if len(chosen) == num_before:
            break  # the remaining distances are too small to draw by
    return np.array(chosen, dtype=np.int64)


class _Seeds:
    """Squared distances of points x (M, D) to seeds c among them, less |x|².

    The term |x|² changes no comparison, and without it a distance is one product, [x, 1, 1] · [-2 c, high |c|², low |c|²].
    """

    def __init__(self, points: Tensor, norms: Tensor, dtype: torch.dtype) -> None:
        self._points, self._norms = points, norms
        ones = torch.ones(len(points), 2, device=points.device)
        self._extended = torch.cat([points, ones], 1).to(dtype).T.contiguous()

    def distances(self, seeds: Tensor) -> Tensor:
        """(P, M): distances of all points to the points at indices `seeds` (P,)."""
        norms = self._norms[seeds]
        high = norms.to(self._extended.dtype)
        low = (norms - high.float()).to(self._extended.dtype)
        return torch.cat([(-2 * self._points[seeds]).to(self._extended.dtype), high[:, None], low[:, None]], 1) @ self._extended

    def nearest(self, chosen: list[int]) -> Tensor:
        """(M,) float32: distance of each point to the nearest of the points at indices `chosen`."""
        nearest = torch.full_like(self._norms, torch.inf)
        num_at_once = max(1, _PRODUCT // len(self._norms))
        for seeds in torch.tensor(chosen, dtype=torch.int64, device=self._norms.device).split(num_at_once):
            nearest = torch.minimum(nearest, self.distances(seeds).amin(0))
        nearest[chosen] = -self._norms[chosen]
        return nearest


def mesoclusters(points: Tensor, num_seeds: int, *, rng_key: int) -> Tensor:
    """Seeds (K, D) for many clusters of points (M, D): k-means to √K groups, then k-means inside all groups at once.

    It costs √K times less than k-means++ over all points. A group's share of the seeds is its share of the inertia, because
    k-means++ would draw them so. `rng_key` is the random key (`rng.key`).
    """
    num_groups = math.isqrt(num_seeds)
    num_sampled = min(len(points), 20 * num_groups)
    sample = torch.from_numpy(rng.permute(rng.key(rng_key, "some"), np.arange(num_sampled), len(points)))
    groups = points[sample[plus_plus(points[sample], num_groups, rng_key=rng.key(rng_key, "groups"))]]
    for _ in range(3):
        label = _labels(points, groups)
        sums = torch.zeros(num_groups, points.shape[1], dtype=torch.float64, device=points.device)
        sums.index_add_(0, label, points.double())
        counts = torch.bincount(label, minlength=num_groups)
        groups = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], groups.double()).float()
    label = _labels(points, groups)
    order = torch.argsort(label, stable=True)
    sizes = torch.bincount(label, minlength=num_groups).cpu().numpy()
    inertia = torch.zeros(num_groups, dtype=torch.float64, device=points.device).index_add_(
        0, label, squared_distance(points, groups, label).double()
    )
    # One seed for every group that is not empty, the rest by inertia, as whole numbers that stay exact when multiplied.
    is_occupied = np.minimum(sizes, 1)
    shares = (inertia / inertia.sum().clamp(min=1e-300) * 2**32).long().cpu().numpy() + 1
    num_clusters = is_occupied + apportion(shares, sizes - is_occupied, num_seeds - int(is_occupied.sum()))
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return grouped_kmeans(points[order], offsets, num_clusters, rng_key=rng.key(rng_key, "inside"), max_iterations=5).centroids


def _labels(points: Tensor, centroids: Tensor) -> Tensor:
    """(M,) int64: the nearest of `centroids` (K, D) for each of `points` (M, D)."""
    search = NearestCentroid(centroids)
    return torch.cat([search(block).label for block in points.split(search.block_rows)])


def _draw(mass: Tensor, num: int, draws: np.random.Generator) -> Tensor:
    """(num,) int64: indices drawn with probability in proportion to `mass` (M,)."""
    cumulative = torch.cumsum(mass.double(), 0)
    picks = torch.searchsorted(cumulative, torch.from_numpy(draws.random(num)).to(mass.device) * cumulative[-1], right=True)
    return picks.clamp_(max=len(mass) - 1)
