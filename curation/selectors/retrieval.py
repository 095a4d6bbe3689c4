"""Rows that are like a set of queries, for example a small curated data set.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024: self-supervised image retrieval.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.base.errors import DataError
from curation.distance.exact import for_products
from curation.distance.nearest import NearestCentroid, default_device
from curation.embeddings.blocks import tensor
from curation.embeddings.source import EmbeddingSource
from curation.sampling.allocation import apportion
from curation.sampling.draw import by_chance, draw, sizes_of
from curation.selectors.config import RetrievalConfig
from curation.selectors.selection import Pool, Selection

_HELD = 2**22
"""Distances held at once."""
_TILE = 1024


class _Found(NamedTuple):
    """Rows found for queries, all (E,)."""

    query: Tensor
    row: Tensor
    squared: Tensor


def select(config: RetrievalConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """Rows near the queries, by Euclidean distance, which for rows of unit length orders like the paper's cosine.

    By neighbours: every query's nearest available row, then every query's second nearest, and so on, until there are `budget`
    different rows. The paper asks for a number of neighbours instead, usually 4.

    By clusters: each query votes for the finest cluster with the nearest centroid, and the budget is shared over clusters in
    proportion to their votes; of each, random rows. Where all that have votes are exhausted, the rest stays unspent. The
    paper asks for a number of rows a cluster.
    """
    queries = pool.need_queries()
    dim = pool.hierarchy.levels[0].centroids.shape[1]
    if queries.num_rows == 0 or queries.dim != dim:
        raise DataError(
            f"Queries must be one or more rows of {dim} dimensions, like the pool's; found {queries.num_rows} rows of "
            f"{queries.dim}. Embed them with the encoder that embedded the pool."
        )
    if config.expand == "clusters":
        return _of_clusters(pool, queries, budget, rng_key)
    return Selection.of(_nearest(pool, queries, min(budget, pool.num_available)), "retrieval")


def _of_clusters(pool: Pool, queries: EmbeddingSource, budget: int, rng_key: int) -> Selection:
    level, device = pool.hierarchy.levels[0], default_device()
    centroids = tensor(level.centroids).to(device)
    search = NearestCentroid(centroids, centroids.mean(0))
    votes = np.zeros(level.num_clusters, dtype=np.int64)
    for some in _read(queries, search.block_rows):
        votes += np.bincount(search(some.to(device)).label.cpu().numpy(), minlength=len(votes))
    sizes = sizes_of(level, pool.available)
    rows, _ = draw(level.assignment, sizes, apportion(votes, sizes, budget), by_chance(rng_key), pool.available)
    return Selection.of(rows, "retrieval", clusters=int(np.count_nonzero(votes)), unspent=budget - len(rows))


def _read(queries: EmbeddingSource, num: int) -> Iterator[Tensor]:
    """`num` of the queries at a time, (num, D) float32."""
    for start in range(0, queries.num_rows, num):
        some = queries.take(np.arange(start, min(start + num, queries.num_rows))).astype(np.float32)
        if not np.isfinite(some).all():
            raise DataError("Some queries are NaN or infinite. Embed them again, or remove those.")
        yield torch.from_numpy(some)


def _nearest(pool: Pool, queries: EmbeddingSource, num: int) -> np.ndarray:
    """(num,) rows by their rank among the nearest of a query, the smallest over all queries, then distance, then index."""
    each = -(-num // queries.num_rows)
    while num:
        rank, squared = _ranks(pool, queries, each)
        found = np.flatnonzero(rank < each)
        if len(found) >= num:
            return found[np.lexsort((squared[found], rank[found]))[:num]]
        each = min(2 * each, pool.num_available)
    return np.empty(0, dtype=np.int64)


def _ranks(pool: Pool, queries: EmbeddingSource, each: int) -> tuple[np.ndarray, np.ndarray]:
    """For every row, its smallest rank (N,) int32 among the nearest `each` of a query, and the squared distance (N,) to it.

    Ranks count from 0; a row that is among none has rank `each`.
    """
    device = default_device()
    origin = tensor(pool.hierarchy.levels[0].centroids).to(device).mean(0)
    rank, squared = np.full(pool.num_rows, each, dtype=np.int32), np.full(pool.num_rows, np.inf)
    for some in _read(queries, max(1, _HELD // max(each + 2 * _TILE, queries.dim))):
        rows, distances = _search(pool, some.to(device), each, origin)
        place = np.broadcast_to(np.arange(each, dtype=np.int32), rows.shape).ravel()
        order = np.lexsort((distances.ravel(), place))
        row, first = np.unique(rows.ravel()[order], return_index=True)
        place, distance = place[order][first], distances.ravel()[order][first]
        better = (place < rank[row]) | ((place == rank[row]) & (distance < squared[row]))
        rank[row[better]], squared[row[better]] = place[better], distance[better]
    return rank, squared


def _search(pool: Pool, queries: Tensor, each: int, origin: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The `each` available rows nearest to each of the queries (Q, D), the first of equals, and their squared distances.

    Both (Q, each), nearest first, in one pass over the rows. Products are exact, so it does not matter how rows come in
    blocks, and equal rows are equally far.
    """
    exact = for_products(queries.double() - origin)
    norms = (exact * exact).sum(1, keepdim=True)
    bound = torch.full_like(norms, torch.inf)
    held: list[_Found] = []
    num = 0
    for numbers, rows in _tiles(pool, origin):
        squared = (norms + (rows * rows).sum(1)) - 2 * (exact @ rows.T)
        query, place = (squared < bound).nonzero(as_tuple=True)
        held.append(_Found(query, numbers[place], squared[query, place]))
        num += len(query)
        if num > len(queries) * (each + _TILE):
            held, num = [_keep_nearest(held, each)], len(queries) * each
            bound = held[0].squared.view(-1, each)[:, -1:]  # of rows equally far the ones already held come first
    found = _keep_nearest(held, each)
    return found.row.view(-1, each).cpu().numpy(), found.squared.view(-1, each).cpu().numpy()


def _tiles(pool: Pool, origin: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers (T,) of available rows, ascending, and the rows (T, D) about `origin`, for products."""
    for first, block in pool.need_embeddings().blocks():
        wanted = np.arange(len(block))
        if pool.available is not None:
            wanted = np.flatnonzero(pool.available[first : first + len(block)])
        for start in range(0, len(wanted), _TILE):
            some = wanted[start : start + _TILE]
            rows = torch.from_numpy(block[some].astype(np.float64)).to(origin.device)
            yield torch.from_numpy(some + first).to(origin.device), for_products(rows - origin)


def _keep_nearest(held: list[_Found], each: int) -> _Found:
    """The `each` nearest rows of every query, all if fewer: by query, then distance, then as they came."""
    found = _Found(*(torch.cat(column) for column in zip(*held, strict=True)))
    order = torch.argsort(found.squared, stable=True)
    order = order[torch.argsort(found.query[order], stable=True)]
    query = found.query[order]
    place = torch.arange(len(query), device=query.device) - torch.searchsorted(query, query)
    order = order[place < each]
    return _Found(*(column[order] for column in found))
