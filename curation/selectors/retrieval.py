"""Retrieval: the rows most similar to a set of queries, for example of a small curated dataset.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024: self-supervised image retrieval.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.base.device import default_device
from curation.base.errors import DataError
from curation.distance.exact import for_products
from curation.distance.nearest import NearestCentroid
from curation.embeddings.blocks import tensor
from curation.embeddings.source import EmbeddingSource
from curation.sampling.allocation import apportion
from curation.sampling.draw import by_chance, draw, sizes_of
from curation.selectors.config import RetrievalConfig
from curation.selectors.selection import Pool, Selection

_HELD = 2**22
"""Distances held at once."""
_TILE = 1024
"""Rows compared with the queries at once."""


class _Neighbours(NamedTuple):
    """Pairs of a query and a row near it, and their squared distance; all (E,)."""

    query: Tensor
    row: Tensor
    squared: Tensor


def select(config: RetrievalConfig, pool: Pool, budget: int, *, rng_key: int) -> Selection:
    """Rows near the queries by Euclidean distance, which for rows of unit length orders like the paper's cosine similarity.

    By neighbours: every query's nearest available row, then every query's second nearest, and so on, until there are `budget`
    different rows. The paper takes a number of neighbours instead of a budget, usually 4.

    By clusters: each query votes for the finest cluster with the nearest centroid, and the budget is shared over clusters in
    proportion to their votes; within a cluster rows are random. If all clusters with votes are exhausted, the rest of the
    budget stays unspent. The paper takes a number of rows per cluster instead of a budget.

    Raises ConfigError if queries or embeddings are missing, DataError if queries do not fit the pool or are not finite.
    """
    queries = pool.need_queries()
    dim = pool.hierarchy.levels[0].centroids.shape[1]
    if queries.num_rows == 0 or queries.dim != dim:
        raise DataError(
            f"Queries must be one or more rows of {dim} dimensions, like the pool's; found {queries.num_rows} rows of "
            f"{queries.dim} dimensions. Embed them with the encoder that embedded the pool."
        )
    if config.expand == "clusters":
        return _of_clusters(pool, queries, budget, rng_key)
    return Selection.of(_nearest(pool, queries, min(budget, pool.num_available)), "retrieval")


def _of_clusters(pool: Pool, queries: EmbeddingSource, budget: int, rng_key: int) -> Selection:
    """Random rows of the clusters that the queries vote for."""
    level, device = pool.hierarchy.levels[0], default_device()
    centroids = tensor(level.centroids).to(device)
    search = NearestCentroid(centroids, centroids.mean(0))
    votes = np.zeros(level.num_clusters, dtype=np.int64)
    for block in _read(queries, search.block_rows):
        votes += np.bincount(search(block.to(device)).label.cpu().numpy(), minlength=len(votes))
    sizes = sizes_of(level, pool.available)
    rows, _ = draw(level.assignment, sizes, apportion(votes, sizes, budget), by_chance(rng_key), pool.available)
    return Selection.of(rows, "retrieval", clusters=int(np.count_nonzero(votes)), unspent=budget - len(rows))


def _read(queries: EmbeddingSource, num: int) -> Iterator[Tensor]:
    """Yield the queries in order, at most `num` at a time: (B, D) float32."""
    for start in range(0, queries.num_rows, num):
        block = queries.take(np.arange(start, min(start + num, queries.num_rows))).astype(np.float32)
        if not np.isfinite(block).all():
            raise DataError("Some queries are NaN or infinite. Embed them again, or remove those rows.")
        yield torch.from_numpy(block)


def _nearest(pool: Pool, queries: EmbeddingSource, num: int) -> np.ndarray:
    """The first `num` rows by their smallest rank among the neighbours of any query, then by distance, then by index."""
    num_neighbours = -(-num // queries.num_rows)
    while num:
        rank, squared = _ranks(pool, queries, num_neighbours)
        ranked = np.flatnonzero(rank < num_neighbours)
        if len(ranked) >= num:
            return ranked[np.lexsort((squared[ranked], rank[ranked]))[:num]]
        num_neighbours = min(2 * num_neighbours, pool.num_available)
    return np.empty(0, dtype=np.int64)


def _ranks(pool: Pool, queries: EmbeddingSource, num_neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """The smallest rank (N,) int32 of every row among the nearest `num_neighbours` rows of a query, and its distance (N,).

    Ranks count from 0; a row that is near no query has rank `num_neighbours` and an infinite squared distance.
    """
    device = default_device()
    origin = tensor(pool.hierarchy.levels[0].centroids).to(device).mean(0)
    rank, squared = np.full(pool.num_rows, num_neighbours, dtype=np.int32), np.full(pool.num_rows, np.inf)
    for block in _read(queries, max(1, _HELD // max(num_neighbours + 2 * _TILE, queries.dim))):
        rows, distances = _search(pool, block.to(device), num_neighbours, origin)
        block_rank = np.broadcast_to(np.arange(num_neighbours, dtype=np.int32), rows.shape).ravel()
        order = np.lexsort((distances.ravel(), block_rank))
        row, first = np.unique(rows.ravel()[order], return_index=True)
        row_rank, distance = block_rank[order][first], distances.ravel()[order][first]
        better = (row_rank < rank[row]) | ((row_rank == rank[row]) & (distance < squared[row]))
        rank[row[better]], squared[row[better]] = row_rank[better], distance[better]
    return rank, squared


def _search(pool: Pool, queries: Tensor, num_neighbours: int, origin: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The `num_neighbours` available rows nearest to each of the queries (Q, D), the first of equals, and squared distances.

    Both results are (Q, num_neighbours), nearest first, made in one pass over the rows. Products are exact, so the result
    does not depend on the division into blocks, and equal rows have equal distances.
    """
    exact = for_products(queries.double() - origin)
    norms = (exact * exact).sum(1, keepdim=True)
    bound = torch.full_like(norms, torch.inf)
    held: list[_Neighbours] = []
    num = 0
    for numbers, rows in _tiles(pool, origin):
        squared = (norms + (rows * rows).sum(1)) - 2 * (exact @ rows.T)
        query, column = (squared < bound).nonzero(as_tuple=True)
        held.append(_Neighbours(query, numbers[column], squared[query, column]))
        num += len(query)
        if num > len(queries) * (num_neighbours + _TILE):
            held, num = [_keep_nearest(held, num_neighbours)], len(queries) * num_neighbours
            bound = held[0].squared.view(-1, num_neighbours)[:, -1:]  # of equally far rows the ones already held come first
    nearest = _keep_nearest(held, num_neighbours)
    return nearest.row.view(-1, num_neighbours).cpu().numpy(), nearest.squared.view(-1, num_neighbours).cpu().numpy()


def _tiles(pool: Pool, origin: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield ascending indices (T,) of available rows, and the rows (T, D) about `origin`, rounded for exact products."""
    for first, block in pool.need_embeddings().blocks():
        available = np.arange(len(block))
        if pool.available is not None:
            available = np.flatnonzero(pool.available[first : first + len(block)])
        for start in range(0, len(available), _TILE):
            tile = available[start : start + _TILE]
            rows = torch.from_numpy(block[tile].astype(np.float64)).to(origin.device)
            yield torch.from_numpy(tile + first).to(origin.device), for_products(rows - origin)


def _keep_nearest(held: list[_Neighbours], num: int) -> _Neighbours:
    """The `num` nearest rows of every query, or all if fewer: by query, then distance, then order of arrival."""
    joined = _Neighbours(*(torch.cat(column) for column in zip(*held, strict=True)))
    order = torch.argsort(joined.squared, stable=True)
    order = order[torch.argsort(joined.query[order], stable=True)]
    query = joined.query[order]
    rank = torch.arange(len(query), device=query.device) - torch.searchsorted(query, query)
    order = order[rank < num]
    return _Neighbours(*(column[order] for column in joined))
