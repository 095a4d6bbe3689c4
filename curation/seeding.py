"""Seeds for k-means: rows far from one another, where rows are many."""

import math

import numpy as np
import torch
from torch import Tensor

from curation import rng
from curation.distance import NearestCentroid, coarse_dtype, squared_distance
from curation.grouped import grouped_kmeans
from curation.journal import Journal
from curation.threads import one_thread

_PROPOSALS = 256
_PRODUCT = 2**24
"""Distances held at once."""
_SAME = 2e-6
"""Of |x|²: a squared distance that small is rounding."""


def plus_plus(
    points: Tensor, num_seeds: int, *, stream: int, weights: Tensor | None = None, journal: Journal | None = None
) -> np.ndarray:
    """Greedy k-means++: indices (K,) into `points` (M, D) float32, fewer than `num_seeds` if fewer points are distinct.

    Each seed is the best of 2 + ln K points drawn with probability proportional to weight times squared distance to the
    nearest seed so far (Arthur and Vassilvitskii, "k-means++", SODA 2007, with the greedy choice they describe).

    Points are proposed many at a time, by the distances at that time, so that their distances are one matrix product. A
    proposal is then accepted with the ratio of its distance now to its distance then, which makes it a draw by the
    distances now. The product is taken in bfloat16 while distances are large beside its rounding.
    """
    journal = journal or Journal()
    num_seeds = min(num_seeds, len(points))
    norms = (points * points).sum(1)
    trials = 2 + int(math.log(num_seeds))
    mass = norms * weights if weights is not None else norms
    # Throughout, |x|² is left out of squared distances: it changes no comparison, and what is left is one product,
    # [x, 1, 1] · [-2 c, high |c|², low |c|²].
    if saved := journal.load("seeding"):
        chosen = saved["chosen"].tolist()
        nearest = torch.from_numpy(saved["nearest"]).to(points.device)
        round_number, coarse = int(saved["round_number"]), bool(saved["coarse"])
    else:
        every = torch.ones_like(norms) if weights is None else weights
        chosen = [int(_draw(every, 1, rng.generator(rng.key(stream, "first")))[0])]
        nearest = _nearest_seed(points, norms, chosen)
        round_number, coarse = 0, True
    ones = torch.ones(len(points), 2, device=points.device)
    coarse = coarse and coarse_dtype(points.device) != torch.float32
    extended = torch.cat([points, ones], 1).to(coarse_dtype(points.device) if coarse else torch.float32).T.contiguous()
    while len(chosen) < num_seeds:
        draws = rng.generator(rng.key(stream, round_number))
        round_number += 1
        squared = nearest + norms
        squared[squared <= _SAME * norms] = 0  # a point equal to a seed, up to rounding: it must not be chosen again
        if weights is not None:
            squared *= weights
        potential = float(squared.double().sum())
        if coarse and potential < float(mass.double().sum()) / 32:
            coarse = False
            extended = torch.cat([points, ones], 1).T.contiguous()
            for start in range(0, len(chosen), 1024):
                nearest = torch.minimum(nearest, _nearest_seed(points, norms, chosen[start : start + 1024]))
            continue
        if potential <= 0:
            break
        num = max(trials, min(_PROPOSALS, trials * len(chosen), _PRODUCT // len(points)))
        proposed = _draw(squared, num, draws)
        distances = _extended(points[proposed], norms[proposed], extended.dtype) @ extended
        accepts = draws.random(num) * (nearest + norms)[proposed].cpu().numpy()
        next_proposal, before = 0, len(chosen)
        with one_thread():
            while len(chosen) < num_seeds:
                left = proposed[next_proposal:]
                now = nearest[left] + norms[left]
                still = torch.where(now > _SAME * norms[left], now, -1).cpu().numpy()
                accepted = np.flatnonzero(accepts[next_proposal:] <= still)[:trials] + next_proposal
                if len(accepted) < (trials if next_proposal else 1):
                    break  # too few are left: propose anew
                next_proposal = int(accepted[-1]) + 1
                of_accepted = distances.index_select(0, torch.from_numpy(accepted).to(points.device)).float()
                lower = torch.minimum(of_accepted, nearest)
                best = int((lower.sum(1) if weights is None else lower @ weights).argmin())
                chosen.append(int(proposed[accepted[best]]))
                nearest = lower[best]
                nearest[chosen[-1]] = -norms[chosen[-1]]
        if len(chosen) == before:
            break  # what is left is too small to draw from
        journal.save(
            "seeding",
            chosen=np.array(chosen),
            nearest=nearest.cpu().numpy(),
            round_number=np.array(round_number),
            coarse=np.array(coarse),
        )
    return np.array(chosen)


def mesoclusters(points: Tensor, num_seeds: int, *, stream: int) -> Tensor:
    """Seeds (K, D) among many points (M, D): k-means to √K groups, then k-means inside every group at once.

    Costs √K times less than k-means++ over all points. A group's share of the seeds is its share of the inertia, because
    that is how k-means++ would draw them.
    """
    num_groups = math.isqrt(num_seeds)
    some = torch.from_numpy(rng.permute(rng.key(stream, "some"), np.arange(min(len(points), 20 * num_groups)), len(points)))
    groups = points[some[plus_plus(points[some], num_groups, stream=rng.key(stream, "groups"))]]
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
    share = _apportion(inertia.cpu().numpy(), sizes, num_seeds)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return grouped_kmeans(points[order], offsets, share, stream=rng.key(stream, "inside"), max_iterations=5).centroids


def _labels(points: Tensor, centroids: Tensor) -> Tensor:
    search = NearestCentroid(centroids)
    return torch.cat([search(some).label for some in points.split(search.block_rows)])


def _apportion(shares: np.ndarray, capacity: np.ndarray, total: int) -> np.ndarray:
    """Whole numbers (G,) in proportion to `shares`, between one and `capacity` each, that add up to `total` if they can."""
    amounts = np.minimum(1, capacity)
    while (left := min(total, int(capacity.sum())) - int(amounts.sum())) > 0:
        weights = np.where(amounts < capacity, np.maximum(shares, 1e-12 * max(shares.sum(), 1e-300)), 0)
        exact = weights / weights.sum() * left
        more = np.minimum(np.floor(exact).astype(np.int64), capacity - amounts)
        if more.sum() == 0:  # the largest remainders get the last ones
            more[np.argsort(-exact, kind="stable")[:left]] = 1
            more = np.minimum(more, capacity - amounts)
        amounts = amounts + more
    return amounts


def _draw(mass: Tensor, num: int, draws: np.random.Generator) -> Tensor:
    """`num` indices, drawn with probability proportional to `mass` (M,)."""
    cumulative = torch.cumsum(mass.double(), 0)
    picks = torch.searchsorted(cumulative, torch.from_numpy(draws.random(num)).to(mass.device) * cumulative[-1], right=True)
    return picks.clamp_(max=len(mass) - 1)


def _nearest_seed(points: Tensor, norms: Tensor, seeds: list[int]) -> Tensor:
    """The squared distance (M,) of each point to the nearest of `seeds`, without |x|²."""
    return torch.addmm(norms[seeds], points, points[seeds].T, alpha=-2).amin(1)


def _extended(seeds: Tensor, norms: Tensor, dtype: torch.dtype) -> Tensor:
    high = norms.to(dtype)
    low = (norms - high.float()).to(dtype)
    return torch.cat([(-2 * seeds).to(dtype), high[:, None], low[:, None]], 1)
