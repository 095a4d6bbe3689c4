"""Connected components of a graph with more rows and edges than fit in memory."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_BLOCK = 2**22
"""Rows of the forest updated at once."""


def components(num_rows: int, edges: Iterable[tuple[np.ndarray, np.ndarray]], *, scratch: Path | None = None) -> np.ndarray:
    """(N,) int32 or int64: the smallest row index in the connected component of each row; its own for a row without edges.

    `edges` are pieces of any size, in any order, each a pair of arrays of row indices (E,). Memory holds one piece and a
    forest of N numbers. With `scratch` the forest is a file at that path instead, and the result a view of it.
    """
    dtype = np.int32 if num_rows < 2**31 else np.int64
    forest = np.empty(num_rows, dtype) if scratch is None else np.memmap(scratch, dtype, "w+", shape=(max(num_rows, 1),))
    for start in range(0, num_rows, _BLOCK):
        forest[start : start + _BLOCK] = np.arange(start, min(start + _BLOCK, num_rows))
    for first, second in edges:
        roots, node = np.unique(np.concatenate([_root(forest, first), _root(forest, second)]), return_inverse=True)
        first_node, second_node = node[: len(first)], node[len(first) :]
        present = np.ones(len(first), dtype=bool)
        graph = coo_array((present, (first_node, second_node)), shape=(len(roots), len(roots)))
        count, label = connected_components(graph, directed=False)
        smallest = np.full(count, num_rows)
        np.minimum.at(smallest, label, roots)
        forest[roots] = smallest[label]
    for start in range(0, num_rows, _BLOCK):
        forest[start : start + _BLOCK] = _root(forest, np.arange(start, min(start + _BLOCK, num_rows)))
    return forest[:num_rows]


def _root(forest: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The root of the tree that each of `rows` is in; afterwards `forest` links the rows to it directly."""
    root = forest[rows]
    while not np.array_equal(parent := forest[root], root):
        root = parent
    forest[rows] = root
    return root
