"""Recall of near-duplicates: the share of pairs that were found, for a sample of rows compared with all others."""

import numpy as np
import torch

from curation.base.device import default_device
from curation.dedup.neighbours import Pairs
from curation.dedup.rules import original_of
from curation.distance.nearest import squared_distance
from curation.distance.products import FullProducts
from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import EmbeddingSource


def brute_force(source: EmbeddingSource, rows: np.ndarray, radius: float) -> Pairs:
    """All pairs of one of `rows` (Q,) and another of the N rows at most `radius` from it, found by comparing Q N pairs."""
    device = default_device()
    queries = torch.from_numpy(source.take(rows).astype(np.float32)).to(device)
    products = FullProducts(queries, queries.mean(0))
    pieces = [np.empty((3, 0))]
    for first, block in read_ahead(source):
        for start in range(0, len(block), products.block_rows):
            tile = block[start : start + products.block_rows].to(device)
            squared = products.squared(tile)
            other, query = (squared <= radius * radius + 1e-4 * squared.mean() + 1e-6).nonzero(as_tuple=True)
            exact = squared_distance(tile[other], queries, query)
            near = exact <= radius * radius
            pair = np.stack([rows[query[near].cpu().numpy()], other[near].cpu().numpy() + first + start])
            pieces.append(np.concatenate([pair, exact[near].cpu().numpy()[None]]))
    one, two, squared_float64 = np.concatenate(pieces, axis=1)
    differ = one != two
    one, two = one[differ].astype(np.int64), two[differ].astype(np.int64)
    return Pairs(np.minimum(one, two), np.maximum(one, two), squared_float64[differ].astype(np.float32))


def covered(first: np.ndarray, second: np.ndarray, same: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) bool: which `pairs` follow from the edges `first` (E,), `second` (E,); those marked `same` (E,) join equal rows."""
    rows, original = original_of(first, second, same)
    if len(rows) == 0:
        return np.zeros(len(pairs.first), dtype=bool)

    def group(row: np.ndarray) -> np.ndarray:
        """The group of equal rows that each row is in; -1 for a row without edges."""
        position = np.searchsorted(rows, row).clip(max=len(rows) - 1)
        return np.where(rows[position] == row, original[position], -1)

    def key(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.minimum(one, two) * len(rows) + np.maximum(one, two)

    one, two = group(pairs.first), group(pairs.second)
    have_edges = (one >= 0) & (two >= 0)
    return have_edges & ((one == two) | np.isin(key(one, two), key(group(first), group(second))))
