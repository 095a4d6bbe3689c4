"""All pairs of rows within a radius, found through a clustering instead of by comparing everything with everything."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.distance.nearest import default_device
from curation.distance.products import FullProducts
from curation.embeddings.blocks import read_ahead, tensor
from curation.embeddings.source import EmbeddingSource
from curation.sampling.draw import grouped

_HELD = 2**26
"""Numbers of row data held at once."""
_TILE = 4096


class Pairs(NamedTuple):
    """Rows within the radius of each other."""

    first: np.ndarray
    """(E,) int64: the smaller row index."""
    second: np.ndarray
    """(E,) int64."""
    squared: np.ndarray
    """(E,) float32: their squared Euclidean distance."""


class Visits(NamedTuple):
    """Which clusters beside its own each row must be compared with."""

    row: np.ndarray
    """(V,) int64."""
    cluster: np.ndarray
    """(V,) int64: of two clusters that share pairs, rows of the one with the smaller index visit the other."""
    missed: int
    """Visits left out because a row had too many. If there are none, no pair is missed."""


def find_visits(
    source: EmbeddingSource,
    centroids: np.ndarray,
    assignment: np.ndarray,
    radius: float,
    *,
    max_visits: int = 64,
    device: torch.device | None = None,
) -> Visits:
    """Which clusters may hold a row at most `radius` from a row of another cluster, at most `max_visits` for each row.

    Rows (N, D) are in the clusters `assignment` (N,), whose `centroids` (K, D) need not be the nearest.
    A row x of cluster a is at least its distance to the plane midway between the centroids a and b away from every row of b.
    So if |x - b|² - |x - a|² > 2 radius |a - b|, it need not look there.
    """
    device = device or default_device()
    centres = tensor(centroids).to(device)
    search = FullProducts(centres, centres.mean(0))
    number = torch.arange(len(centres), device=device)
    rows, clusters, missed = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    for first, block in read_ahead(source):
        for start in range(0, len(block), search.block_rows):
            some = block[start : start + search.block_rows].to(device)
            home = torch.from_numpy(assignment[first + start : first + start + len(some)].astype(np.int64)).to(device)
            squared = search.squared(some)
            apart = search.squared(centres[home]).sqrt()
            excess = squared - squared.gather(1, home[:, None]) - 2 * radius * apart
            # What rounding may have added, so that no pair is lost to it.
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
    device: torch.device | None = None,
) -> Iterator[Pairs]:
    """Yield all pairs of rows at most `radius` apart, each once, cluster by cluster, of a range of `clusters`.

    Cluster k of the `centroids` (K, D) has the rows `members[offsets[k]]` to `members[offsets[k + 1]]` (`sampling.grouped`).
    The rows of a cluster are compared with one another and with the rows that visit it, about its centroid, so that nothing
    cancels. Equal rows are compared as one and paired with the first of them: a thousand copies make 999 pairs and not half
    a million.
    """
    device = device or default_device()
    visitors, visitor_offsets = grouped(visits.cluster, len(centroids))
    load = np.cumsum((np.diff(offsets) + np.diff(visitor_offsets)) * source.dim)
    batch = load // _HELD
    for batch_number in np.unique(batch[clusters.start : clusters.stop]):
        low, high = np.searchsorted(batch, [batch_number, batch_number + 1]).clip(clusters.start, clusters.stop)
        own = members[offsets[low] : offsets[high]]
        guests = visits.row[visitors[visitor_offsets[low] : visitor_offsets[high]]]
        ids, place = np.unique(np.concatenate([own, guests]), return_inverse=True)
        rows = torch.from_numpy(source.take(ids).astype(np.float32)).to(device)
        for cluster in range(low, high):
            inside = place[: len(own)][offsets[cluster] - offsets[low] : offsets[cluster + 1] - offsets[low]]
            begin, end = visitor_offsets[cluster : cluster + 2] - visitor_offsets[low]
            outside = place[len(own) :][begin:end]
            centre = tensor(centroids[cluster]).to(device)
            yield from _compare(rows, ids, np.sort(inside), np.sort(outside), centre, radius)


def _compare(
    rows: Tensor, ids: np.ndarray, inside: np.ndarray, outside: np.ndarray, centre: Tensor, radius: float
) -> Iterator[Pairs]:
    """Pairs among `inside`, and between `inside` and `outside`: places in `rows` and `ids`, both ascending."""
    mine, guests = rows[torch.from_numpy(inside)] - centre, rows[torch.from_numpy(outside)] - centre
    kept, original = _distinct(mine)
    copies = np.flatnonzero(original != np.arange(len(inside)))
    if len(copies):
        yield Pairs(ids[inside[original[copies]]], ids[inside[copies]], np.zeros(len(copies), dtype=np.float32))
    mine, inside = mine[torch.from_numpy(kept).to(rows.device)], inside[kept]
    guest_kept, _ = _distinct(guests)  # copies of a guest are paired with it at home
    guests, outside = guests[torch.from_numpy(guest_kept).to(rows.device)], outside[guest_kept]
    limit = radius * radius
    others = torch.cat([mine, guests])
    other_ids = np.concatenate([ids[inside], ids[outside]])
    for start in range(0, len(mine), _TILE):
        block = mine[start : start + _TILE]
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
            away = block[left] - tile[right]
            exact = torch.linalg.vecdot(away, away)
            close = exact <= limit
            one = ids[inside[left[close].cpu().numpy() + start]]
            two = other_ids[right[close].cpu().numpy() + column]
            if len(one):
                yield Pairs(np.minimum(one, two), np.maximum(one, two), exact[close].cpu().numpy())


def _distinct(rows: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The first of each set of equal rows, ascending, and for every row (M,) the first that equals it."""
    if len(rows) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    values = np.ascontiguousarray(rows.cpu().numpy() + 0.0)  # no negative zeros
    _, first, inverse = np.unique(values.view(f"V{values.strides[0]}")[:, 0], return_index=True, return_inverse=True)
    return np.sort(first), first[inverse]
