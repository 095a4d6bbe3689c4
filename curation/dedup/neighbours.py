"""All pairs of rows within a radius, found through a clustering instead of by comparing all rows with all rows."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.base.device import default_device
from curation.distance.nearest import NearestCentroid
from curation.distance.products import FullProducts
from curation.embeddings.blocks import read_ahead, tensor
from curation.embeddings.source import EmbeddingSource
from curation.sampling.draw import grouped

_HELD = 2**26
"""Numbers of row data held at once."""
_TILE = 4096
"""Rows on each side of a block of distances."""


class Pairs(NamedTuple):
    """Pairs of rows within the radius of each other."""

    first: np.ndarray
    """(E,) int64: the smaller row index."""
    second: np.ndarray
    """(E,) int64: the larger row index."""
    squared: np.ndarray
    """(E,) float32: their squared Euclidean distance."""


class Visits(NamedTuple):
    """The other clusters that rows must be compared with."""

    row: np.ndarray
    """(V,) int64: index of the row."""
    cluster: np.ndarray
    """(V,) int64: the cluster it is compared with. Rows of the cluster with the smaller index visit the other one."""
    missed: int
    """Number of visits left out because a row had too many. If it is 0, no pair is missed."""


def find_visits(
    source: EmbeddingSource,
    centroids: np.ndarray,
    assignment: np.ndarray,
    radius: float,
    *,
    max_visits: int = 64,
) -> Visits:
    """The clusters that may hold a row within `radius` of a row of another cluster, at most `max_visits` for each row.

    Rows (N, D) are in the clusters `assignment` (N,), whose `centroids` (K, D) need not be the nearest. The distance of a row
    x of cluster a to any row of cluster b is at least its distance to the plane midway between the centroids a and b. So if
    |x - b|² - |x - a|² > 2 radius |a - b|, x need not be compared with b.
    """
    device = default_device()
    on_device = tensor(centroids).to(device)
    search = FullProducts(on_device, on_device.mean(0))
    number = torch.arange(len(on_device), device=device)
    rows, clusters, missed = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for first, block in read_ahead(source):
        for start in range(0, len(block), search.block_rows):
            tile = block[start : start + search.block_rows].to(device)
            home = torch.from_numpy(assignment[first + start : first + start + len(tile)].astype(np.int64)).to(device)
            squared = search.squared(tile)
            between_centroids = search.squared(on_device[home]).sqrt()
            excess = squared - squared.gather(1, home[:, None]) - 2 * radius * between_centroids
            # The limit allows for rounding, so that no pair is lost to it.
            near = (excess <= 1e-5 * (squared + squared.gather(1, home[:, None]))) & (number > home[:, None])
            row, cluster = near.nonzero(as_tuple=True)
            if len(row) and int(near.sum(1).max()) > max_visits:
                order = torch.argsort(squared[row, cluster], stable=True)
                order = order[torch.argsort(row[order], stable=True)]
                row, cluster = row[order], cluster[order]
                starts = torch.searchsorted(row, row)
                kept = torch.arange(len(row), device=device) - starts < max_visits
                missed += int((~kept).sum())
                row, cluster = row[kept], cluster[kept]
            rows.append(row.cpu().numpy() + first + start)
            clusters.append(cluster.cpu().numpy())
    return Visits(np.concatenate(rows), np.concatenate(clusters), missed)


def near_pairs(
    source: EmbeddingSource,
    centroids: np.ndarray,
    members: np.ndarray,
    offsets: np.ndarray,
    visits: Visits,
    radius: float,
    *,
    clusters: range,
) -> Iterator[Pairs]:
    """Yield all pairs of rows at most `radius` apart, each once, for one cluster after another of the range `clusters`.

    Cluster k of the `centroids` (K, D) has the rows `members[offsets[k]]` to `members[offsets[k + 1]]`, as given by
    `curation.sampling.draw.grouped`. The rows of a cluster are compared with one another and with the rows that visit it,
    relative to its centroid, so that nothing cancels. Equal rows are compared as one and paired with the first of them: a
    thousand copies make 999 pairs and not half a million.
    """
    device = default_device()
    visitors, visitor_offsets = grouped(visits.cluster, len(centroids))
    batch = np.cumsum((np.diff(offsets) + np.diff(visitor_offsets)) * source.dim) // _HELD
    for batch_number in np.unique(batch[clusters.start : clusters.stop]):
        low, high = np.searchsorted(batch, [batch_number, batch_number + 1]).clip(clusters.start, clusters.stop)
        member_ids = members[offsets[low] : offsets[high]]
        visitor_ids = visits.row[visitors[visitor_offsets[low] : visitor_offsets[high]]]
        ids, position = np.unique(np.concatenate([member_ids, visitor_ids]), return_inverse=True)
        rows = torch.from_numpy(source.take(ids).astype(np.float32)).to(device)
        for cluster in range(low, high):
            inside = position[: len(member_ids)][offsets[cluster] - offsets[low] : offsets[cluster + 1] - offsets[low]]
            begin, end = visitor_offsets[cluster : cluster + 2] - visitor_offsets[low]
            outside = position[len(member_ids) :][begin:end]
            centroid = tensor(centroids[cluster]).to(device)
            yield from _compare(rows, ids, np.sort(inside), np.sort(outside), centroid, radius)


def _compare(
    rows: Tensor, ids: np.ndarray, inside: np.ndarray, outside: np.ndarray, centroid: Tensor, radius: float
) -> Iterator[Pairs]:
    """Yield pairs among `inside`, and between `inside` and `outside`: ascending indices into `rows` (M, D) and `ids` (M,)."""
    members, visitors = rows[torch.from_numpy(inside)] - centroid, rows[torch.from_numpy(outside)] - centroid
    kept, original = _distinct(members)
    copies = np.flatnonzero(original != np.arange(len(inside)))
    if len(copies):
        yield Pairs(ids[inside[original[copies]]], ids[inside[copies]], np.zeros(len(copies), dtype=np.float32))
    members, inside = members[torch.from_numpy(kept).to(rows.device)], inside[kept]
    kept, _ = _distinct(visitors)  # copies of a visitor are paired with it in its own cluster
    visitors, outside = visitors[torch.from_numpy(kept).to(rows.device)], outside[kept]
    limit = radius * radius
    others = torch.cat([members, visitors])
    other_ids = np.concatenate([ids[inside], ids[outside]])
    for start in range(0, len(members), _TILE):
        block = members[start : start + _TILE]
        for column in range(start, len(others), _TILE):
            tile = others[column : column + _TILE]
            scale = (block * block).sum(1)[:, None] + (tile * tile).sum(1)
            squared = scale - 2 * block @ tile.T
            near = squared <= limit + 1e-5 * scale
            if column < start + len(block):  # each pair of members once
                near &= torch.arange(column, column + len(tile), device=rows.device) > torch.arange(
                    start, start + len(block), device=rows.device
                ).unsqueeze(1)
            left, right = near.nonzero(as_tuple=True)
            difference = block[left] - tile[right]
            exact = torch.linalg.vecdot(difference, difference)
            close = exact <= limit
            one = ids[inside[left[close].cpu().numpy() + start]]
            two = other_ids[right[close].cpu().numpy() + column]
            if len(one):
                yield Pairs(np.minimum(one, two), np.maximum(one, two), exact[close].cpu().numpy())


def _distinct(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Ascending indices of the first of each set of equal rows, and for every row (M,) the index of the first equal one."""
    if len(rows) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    values = np.ascontiguousarray(rows.cpu().numpy() + 0.0)  # no negative zeros
    _, first, inverse = np.unique(values.view(f"V{values.strides[0]}")[:, 0], return_index=True, return_inverse=True)
    return np.sort(first), first[inverse]


def nearest_clusters(source: EmbeddingSource, level_centroids: np.ndarray) -> np.ndarray:
    """(N,) int32: the nearest of the centroids (K, D) to each row of `source`."""
    centroids = tensor(level_centroids).to(default_device())
    nearest = NearestCentroid(centroids, centroids.mean(0))
    blocks = (tensor(block) for _, block in source.blocks())
    labels = [nearest(rows.to(centroids.device)).label for block in blocks for rows in block.split(nearest.block_rows)]
    return torch.cat(labels).cpu().numpy().astype(np.int32)
