"""Many small k-means at once: ragged groups of rows, in batched products instead of a loop over the groups."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.distance.exact import Grid
from curation.distance.nearest import squared_distance

_BATCH = 2**24
"""Numbers in one padded batch of groups."""
_SAME = 2e-6
"""Of |x|²: a squared distance that small is rounding."""


@dataclass(frozen=True, kw_only=True)
class GroupedResult:
    """The clusters of G groups, numbered through, group after group; none is empty."""

    centroids: Tensor
    """(K, D) float32."""
    offsets: np.ndarray
    """(G + 1,) int64: group g owns centroids `offsets[g]` to `offsets[g + 1]`."""
    label: Tensor
    """(M,) int64: the nearest centroid of its group for each row."""
    squared: Tensor
    """(M,) float32: the squared distance to it."""


def grouped_kmeans(
    rows: Tensor,
    offsets: np.ndarray,
    num_clusters: np.ndarray,
    *,
    rng_key: int,
    max_iterations: int = 10,
    first_group: int = 0,
) -> GroupedResult:
    """k-means inside every group: rows (M, D) float32, group g owning `offsets[g]` to `offsets[g + 1]` (G + 1,) of them.

    Group g gets `num_clusters[g]` clusters, fewer if it has fewer distinct rows. Seeds by greedy k-means++, then Lloyd
    iterations until no label changes. Groups of similar size are padded to one length and worked on together. `first_group`
    is the number of the first of them among all, where these are not all.
    """
    sizes = np.diff(offsets)
    wanted = np.minimum(num_clusters, sizes)
    counts = np.zeros(len(sizes), dtype=np.int64)
    label = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    squared = rows.new_empty(len(rows))
    trials = 2 + int(math.log(max(1, wanted.max(initial=1))))
    batches: list[tuple[np.ndarray, Tensor]] = []
    grid = Grid(float(rows.abs().max()) * 2, int(sizes.max(initial=1))) if len(rows) else Grid(1, 1)
    for groups in _batches(sizes, wanted, rows.shape[1]):
        place, real = _padded(offsets[groups], sizes[groups], rows.device)
        points = rows[place]
        # About each group's own mean, so that expanded distances do not cancel.
        origin = (points * real[:, :, None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
        points = (points - origin) * real[:, :, None]
        seeds = _seed(points, real, wanted[groups], groups + first_group, trials, rng_key)
        centroids, taken, found, distance = _lloyd(points, real, seeds, grid, max_iterations)
        counts[groups] = taken.sum(1).cpu().numpy()
        label[place[real]] = found[real]
        squared[place[real]] = distance[real]
        batches.append((groups, (centroids + origin)[taken]))
    ends = np.concatenate([[0], np.cumsum(counts)])
    centroids = rows.new_empty(int(ends[-1]), rows.shape[1])
    for groups, mine in batches:
        centroids[torch.from_numpy(_ranges(ends[groups], counts[groups])).to(rows.device)] = mine
    label += torch.from_numpy(np.repeat(ends[:-1], sizes)).to(rows.device)
    return GroupedResult(centroids=centroids, offsets=ends, label=label, squared=squared)


def grouped_nearest(rows: Tensor, group: np.ndarray, centroids: Tensor, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
    """For each of `rows` (B, D) float32 the nearest of its group's centroids, and the squared distance to it: (B,), (B,).

    Group g owns `offsets[g]` to `offsets[g + 1]` (G + 1,) of `centroids` (K, D) float32; every group of a row owns some.
    """
    order = np.argsort(group, kind="stable")
    groups, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    owned = np.diff(offsets)[groups]
    label = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    sorted_rows = torch.from_numpy(order).to(rows.device)
    for some in _batches(sizes, owned, rows.shape[1]):
        place, real = _padded(starts[some], sizes[some], rows.device)
        slot, exists = _padded(offsets[groups[some]], owned[some], rows.device)
        points, parts = rows[sorted_rows[place]], centroids[slot]
        origin = parts[:, :1]  # about a centroid of the group, so that little cancels
        points, parts = points - origin, parts - origin
        scores = torch.baddbmm((parts * parts).sum(2)[:, None], points, parts.transpose(1, 2), alpha=-2)
        best = scores.masked_fill_(~exists[:, None], torch.inf).argmin(2)
        label[sorted_rows[place[real]]] = slot.gather(1, best)[real]
    return label, squared_distance(rows, centroids, label)


def _batches(sizes: np.ndarray, num_clusters: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """Groups that are not empty, cut into batches of similar size that fit in memory."""
    order = np.lexsort((num_clusters, sizes))
    order = order[(sizes[order] > 0) & (num_clusters[order] > 0)]
    start = 0
    while start < len(order):
        smallest = sizes[order[start]]
        similar = int(np.searchsorted(sizes[order], smallest + smallest // 4 + 8, side="right"))
        width = max(dim, int(num_clusters[order[start:similar]].max()))
        end = min(similar, start + max(1, _BATCH // (width * int(sizes[order[similar - 1]]))))
        yield order[start:end]
        start = end


def _ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """range(starts[0], starts[0] + counts[0]), then range(starts[1], …), …, in one array."""
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _padded(starts: np.ndarray, sizes: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row indices (G, m) of groups padded to the longest, and which of them are real (G, m)."""
    place = torch.arange(int(sizes.max()), device=device)
    real = place < torch.from_numpy(sizes).to(device)[:, None]
    return torch.where(real, place + torch.from_numpy(starts).to(device)[:, None], 0), real


def _seed(points: Tensor, real: Tensor, num_seeds: np.ndarray, groups: np.ndarray, trials: int, rng_key: int) -> Tensor:
    """Greedy k-means++ in each group of points (G, m, D): indices (G, k), -1 where a group has no more."""
    most = int(num_seeds.max())
    wanted = torch.from_numpy(num_seeds).to(points.device)
    norms = (points * points).sum(2)
    chosen = torch.full((len(points), most), -1, device=points.device)
    nearest = torch.where(real, torch.inf, 0.0)
    flipped = points.transpose(1, 2)
    for step in range(most):
        draws = torch.from_numpy(rng.uniform(rng.key(rng_key, step), groups, trials)).to(points.device)
        mass = torch.where(real, 1.0, 0.0) if step == 0 else nearest
        cumulative = mass.double().cumsum(1)
        picks = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp_(max=points.shape[1] - 1)
        candidates = points.gather(1, picks[:, :, None].expand(-1, -1, points.shape[2]))
        lower = norms[:, None] + norms.gather(1, picks)[:, :, None] - 2 * candidates @ flipped
        lower = torch.where(lower <= _SAME * norms[:, None], 0, lower).minimum(nearest[:, None])
        best = lower.sum(2).argmin(1) if step else torch.zeros(len(points), dtype=torch.int64, device=points.device)
        pick = picks.gather(1, best[:, None])[:, 0]
        goes_on = (step < wanted) & (cumulative[:, -1] > 0)
        chosen[:, step] = torch.where(goes_on, pick, -1)
        nearest = torch.where(goes_on[:, None], lower[torch.arange(len(points)), best], nearest)
        nearest.scatter_(1, pick[:, None], torch.where(goes_on, 0, nearest.gather(1, pick[:, None])[:, 0])[:, None])
    return chosen


def _lloyd(
    points: Tensor, real: Tensor, seeds: Tensor, grid: Grid, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lloyd iterations in each group: centroids (G, k, D), which of them exist (G, k), labels and squared distances (G, m).

    Labels count the existing centroids of the group only.
    """
    num_groups, most = seeds.shape
    shape = (num_groups, most, points.shape[2])
    exists = seeds >= 0
    centroids = points.gather(1, seeds.clamp(min=0)[:, :, None].expand(shape))
    norms = (points * points).sum(2)
    slot = torch.arange(num_groups, device=points.device)[:, None] * most
    flat = grid(points[real])
    label = torch.full(real.shape, -1, device=points.device)
    for iteration in range(max_iterations + 1):
        scores = torch.baddbmm((centroids * centroids).sum(2)[:, None], points, centroids.transpose(1, 2), alpha=-2)
        scores.masked_fill_(~exists[:, None], torch.inf)
        smallest, found = scores.min(2)
        squared = (smallest + norms).clamp_(min=0) * real
        counts = torch.bincount((found + slot)[real], minlength=num_groups * most).view(num_groups, most)
        if iteration == max_iterations or torch.equal(found, label):
            break
        label = found
        # Each empty cluster takes the row that fits worst, as long as there are rows that do not fit.
        empty = exists & (counts == 0)
        if empty.any():
            worst = torch.argsort(squared, stable=True, dim=1, descending=True)
            rank = (empty.cumsum(1) - 1).clamp_(0, points.shape[1] - 1)
            row = worst.gather(1, rank)
            fits = squared.gather(1, row) <= _SAME * norms.gather(1, row)
            take = empty & ~fits & (empty.cumsum(1) <= points.shape[1])
            group, cluster = take.nonzero(as_tuple=True)
            label = label.clone()
            label[group, row[group, cluster]] = cluster
        sums = torch.zeros(num_groups * most, points.shape[2], dtype=torch.float64, device=points.device)
        sums.index_add_(0, (label + slot)[real], flat)
        counts = torch.bincount((label + slot)[real], minlength=num_groups * most).view(num_groups, most)
        means = (sums.view(shape) / counts.clamp(min=1)[:, :, None]).float()
        centroids = torch.where((counts > 0)[:, :, None], means, centroids)
        label = found
    occupied = counts > 0
    return centroids, occupied, (occupied.cumsum(1) - 1).gather(1, found), squared
