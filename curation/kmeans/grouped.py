"""Many small k-means at once: groups of rows of different sizes, in batched products instead of a loop over groups."""

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
"""Numbers held in one padded batch of groups."""
_SAME = 2e-6
"""Share of |x|² up to which a squared distance is rounding error."""


@dataclass(frozen=True, kw_only=True)
class GroupedResult:
    """The clusters of G groups, numbered consecutively, group after group; none is empty."""

    centroids: Tensor
    """(K, D) float32."""
    offsets: np.ndarray
    """(G + 1,) int64: group g has the centroids `offsets[g]` to `offsets[g + 1]`."""
    label: Tensor
    """(M,) int64: for each row the nearest centroid of its group."""
    squared_distance: Tensor
    """(M,) float32: squared distance of each row to that centroid."""


def grouped_kmeans(
    rows: Tensor,
    offsets: np.ndarray,
    num_clusters: np.ndarray,
    *,
    rng_key: int,
    max_iterations: int = 10,
    first_group: int = 0,
) -> GroupedResult:
    """k-means inside every group: group g has the rows `offsets[g]` to `offsets[g + 1]` of `rows` (M, D) float32.

    Group g of the G groups gets `num_clusters[g]` clusters, fewer if it has fewer distinct rows. Seeds come from greedy
    k-means++, followed by Lloyd iterations until no label changes. Groups of similar size are padded to the same length and
    processed together. If these groups are a part of more, `first_group` is the number of the first among all, so that draws
    do not depend on the division. `rng_key` is the random key (`rng.key`).
    """
    sizes = np.diff(offsets)
    num_seeds = np.minimum(num_clusters, sizes)
    counts = np.zeros(len(sizes), dtype=np.int64)
    label = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    squared = rows.new_empty(len(rows))
    trials = 2 + int(math.log(max(1, num_seeds.max(initial=1))))
    batches: list[tuple[np.ndarray, Tensor]] = []
    grid = Grid(float(rows.abs().max()) * 2, int(sizes.max(initial=1))) if len(rows) else Grid(1, 1)
    for groups in _batches(sizes, num_seeds, rows.shape[1]):
        index, real = _padded(offsets[groups], sizes[groups], rows.device)
        points = rows[index]
        # About the mean of each group, so that expanded distances do not cancel.
        origin = (points * real[:, :, None]).sum(1, keepdim=True) / real.sum(1)[:, None, None]
        points = (points - origin) * real[:, :, None]
        seeds = _seed(points, real, num_seeds[groups], groups + first_group, trials, rng_key)
        centroids, occupied, batch_label, batch_squared = _lloyd(points, real, seeds, grid, max_iterations)
        counts[groups] = occupied.sum(1).cpu().numpy()
        label[index[real]] = batch_label[real]
        squared[index[real]] = batch_squared[real]
        batches.append((groups, (centroids + origin)[occupied]))
    ends = np.concatenate([[0], np.cumsum(counts)])
    centroids = rows.new_empty(int(ends[-1]), rows.shape[1])
    for groups, batch_centroids in batches:
        centroids[torch.from_numpy(_ranges(ends[groups], counts[groups])).to(rows.device)] = batch_centroids
    label += torch.from_numpy(np.repeat(ends[:-1], sizes)).to(rows.device)
    return GroupedResult(centroids=centroids, offsets=ends, label=label, squared_distance=squared)


def grouped_nearest(rows: Tensor, group: np.ndarray, centroids: Tensor, offsets: np.ndarray) -> tuple[Tensor, Tensor]:
    """The nearest centroid of the same group for each of `rows` (B, D) float32, and the squared distance to it: (B,), (B,).

    `group` (B,) are the groups of the rows. Group g has the centroids `offsets[g]` to `offsets[g + 1]` of `centroids` (K, D)
    float32; the group of every row must have at least one.
    """
    order = np.argsort(group, kind="stable")
    groups, starts, sizes = np.unique(group[order], return_index=True, return_counts=True)
    num_centroids = np.diff(offsets)[groups]
    label = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
    sorted_rows = torch.from_numpy(order).to(rows.device)
    for batch in _batches(sizes, num_centroids, rows.shape[1]):
        index, real = _padded(starts[batch], sizes[batch], rows.device)
        centroid_index, exists = _padded(offsets[groups[batch]], num_centroids[batch], rows.device)
        points, candidates = rows[sorted_rows[index]], centroids[centroid_index]
        origin = candidates[:, :1]  # about a centroid of the group, so that little cancels
        points, candidates = points - origin, candidates - origin
        norms = (candidates * candidates).sum(2)[:, None]
        scores = torch.baddbmm(norms, points, candidates.transpose(1, 2), alpha=-2)
        best = scores.masked_fill_(~exists[:, None], torch.inf).argmin(2)
        label[sorted_rows[index[real]]] = centroid_index.gather(1, best)[real]
    return label, squared_distance(rows, centroids, label)


def _batches(sizes: np.ndarray, num_clusters: np.ndarray, dim: int) -> Iterator[np.ndarray]:
    """Yield the groups that are not empty, in batches of groups of similar size that fit in memory."""
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
    """The ranges of `counts[i]` numbers from `starts[i]` on, one after another in one array."""
    return np.repeat(starts - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _padded(starts: np.ndarray, sizes: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row indices (G, m) of groups padded to the longest, and a mask (G, m) of those that are not padding."""
    position = torch.arange(int(sizes.max()), device=device)
    real = position < torch.from_numpy(sizes).to(device)[:, None]
    return torch.where(real, position + torch.from_numpy(starts).to(device)[:, None], 0), real


def _seed(points: Tensor, real: Tensor, num_seeds: np.ndarray, groups: np.ndarray, trials: int, rng_key: int) -> Tensor:
    """Greedy k-means++ in each group of points (G, m, D): indices (G, k), -1 where a group has no more distinct points."""
    max_seeds = int(num_seeds.max())
    targets = torch.from_numpy(num_seeds).to(points.device)
    norms = (points * points).sum(2)
    chosen = torch.full((len(points), max_seeds), -1, device=points.device)
    nearest = torch.where(real, torch.inf, 0.0)
    transposed = points.transpose(1, 2)
    for step in range(max_seeds):
        draws = torch.from_numpy(rng.uniform(rng.key(rng_key, step), groups, trials)).to(points.device)
        mass = torch.where(real, 1.0, 0.0) if step == 0 else nearest
        cumulative = mass.double().cumsum(1)
        picks = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp_(max=points.shape[1] - 1)
        candidates = points.gather(1, picks[:, :, None].expand(-1, -1, points.shape[2]))
        lower = norms[:, None] + norms.gather(1, picks)[:, :, None] - 2 * candidates @ transposed
        lower = torch.where(lower <= _SAME * norms[:, None], 0, lower).minimum(nearest[:, None])
        best = lower.sum(2).argmin(1) if step else torch.zeros(len(points), dtype=torch.int64, device=points.device)
        pick = picks.gather(1, best[:, None])[:, 0]
        is_open = (step < targets) & (cumulative[:, -1] > 0)
        chosen[:, step] = torch.where(is_open, pick, -1)
        nearest = torch.where(is_open[:, None], lower[torch.arange(len(points)), best], nearest)
        nearest.scatter_(1, pick[:, None], torch.where(is_open, 0, nearest.gather(1, pick[:, None])[:, 0])[:, None])
    return chosen


def _lloyd(
    points: Tensor, real: Tensor, seeds: Tensor, grid: Grid, max_iterations: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Lloyd iterations in each group of points (G, m, D), of which `real` (G, m) are not padding, from `seeds` (G, k).

    Returns centroids (G, k, D), a mask of those that have rows (G, k), and labels and squared distances (G, m). Labels count
    only the centroids of the group that have rows.
    """
    num_groups, max_clusters = seeds.shape
    shape = (num_groups, max_clusters, points.shape[2])
    exists = seeds >= 0
    centroids = points.gather(1, seeds.clamp(min=0)[:, :, None].expand(shape))
    norms = (points * points).sum(2)
    slot = torch.arange(num_groups, device=points.device)[:, None] * max_clusters
    terms = grid(points[real])
    label = torch.full(real.shape, -1, device=points.device)
    for iteration in range(max_iterations + 1):
        scores = torch.baddbmm((centroids * centroids).sum(2)[:, None], points, centroids.transpose(1, 2), alpha=-2)
        scores.masked_fill_(~exists[:, None], torch.inf)
        smallest, nearest = scores.min(2)
        squared = (smallest + norms).clamp_(min=0) * real
        counts = torch.bincount((nearest + slot)[real], minlength=num_groups * max_clusters).view(num_groups, max_clusters)
        if iteration == max_iterations or torch.equal(nearest, label):
            break
        label = nearest
        # Each empty cluster takes the row farthest from its centroid, as long as there are rows that differ from theirs.
        empty = exists & (counts == 0)
        if empty.any():
            worst = torch.argsort(squared, stable=True, dim=1, descending=True)
            rank = (empty.cumsum(1) - 1).clamp_(0, points.shape[1] - 1)
            row = worst.gather(1, rank)
            is_equal = squared.gather(1, row) <= _SAME * norms.gather(1, row)
            take = empty & ~is_equal & (empty.cumsum(1) <= points.shape[1])
            group, cluster = take.nonzero(as_tuple=True)
            label = label.clone()
            label[group, row[group, cluster]] = cluster
        sums = torch.zeros(num_groups * max_clusters, points.shape[2], dtype=torch.float64, device=points.device)
        sums.index_add_(0, (label + slot)[real], terms)
        counts = torch.bincount((label + slot)[real], minlength=num_groups * max_clusters).view(num_groups, max_clusters)
        means = (sums.view(shape) / counts.clamp(min=1)[:, :, None]).float()
        centroids = torch.where((counts > 0)[:, :, None], means, centroids)
        label = nearest
    occupied = counts > 0
    return centroids, occupied, (occupied.cumsum(1) - 1).gather(1, nearest), squared
