"""How many of all near-duplicates were found: for some rows, by comparing them with every other."""

import numpy as np
import torch

from curation.dedup.neighbours import Pairs
from curation.dedup.rules import original_of
from curation.distance.nearest import default_device, squared_distance
from curation.distance.products import FullProducts
from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import EmbeddingSource


def brute_force(source: EmbeddingSource, rows: np.ndarray, radius: float, *, device: torch.device | None = None) -> Pairs:
    """All pairs of one of `rows` (Q,) and any other row at most `radius` from it. Reads every row once, compares Q N pairs."""
    device = device or default_device()
    queries = torch.from_numpy(source.take(rows).astype(np.float32)).to(device)
    products = FullProducts(queries, queries.mean(0))
    found = [np.empty((3, 0))]
    for first, block in read_ahead(source):
        for start in range(0, len(block), products.block_rows):
            some = block[start : start + products.block_rows].to(device)
            squared = products.squared(some)
            other, query = (squared <= radius * radius + 1e-4 * squared.mean() + 1e-6).nonzero(as_tuple=True)
            exact = squared_distance(some[other], queries, query)
            near = exact <= radius * radius
            pair = np.stack([rows[query[near].cpu().numpy()], other[near].cpu().numpy() + first + start])
            found.append(np.concatenate([pair, exact[near].cpu().numpy()[None]]))
    one, two, away = np.concatenate(found, axis=1)
    other_than_itself = one != two
    one, two = one[other_than_itself].astype(np.int64), two[other_than_itself].astype(np.int64)
    return Pairs(np.minimum(one, two), np.maximum(one, two), away[other_than_itself].astype(np.float32))


def covered(first: np.ndarray, second: np.ndarray, same: np.ndarray, pairs: Pairs) -> np.ndarray:
    """(P,) bool: which of `pairs` the edges (E,), (E,) tell of, of which `same` (E,) join equal rows."""
    rows, original = original_of(first, second, same)
    if len(rows) == 0:
        return np.zeros(len(pairs.first), dtype=bool)

    def place(row: np.ndarray) -> np.ndarray:
        """The row that stands for it and its equals, -1 for one without edges."""
        at = np.searchsorted(rows, row).clip(max=len(rows) - 1)
        return np.where(rows[at] == row, original[at], -1)

    def key(one: np.ndarray, two: np.ndarray) -> np.ndarray:
        return np.minimum(one, two) * len(rows) + np.maximum(one, two)

    one, two = place(pairs.first), place(pairs.second)
    known = (one >= 0) & (two >= 0)
    return known & ((one == two) | np.isin(key(one, two), key(place(first), place(second))))
