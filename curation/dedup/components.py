"""Groups of rows that edges connect, for more rows and edges than fit in memory."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

_BLOCK = 2**22


def components(num_rows: int, edges: Iterable[tuple[np.ndarray, np.ndarray]], *, scratch: Path | None = None) -> np.ndarray:
    """(N,) the smallest row index of the connected component of every row; a row without edges is its own.

    `edges` comes in pieces of any size and order. Memory holds one piece; the forest of N numbers lies in `scratch`, a file,
    where given, and the result is a view of it.
    """
    dtype = np.int32 if num_rows < 2**31 else np.int64
    forest = np.empty(num_rows, dtype) if scratch is None else np.memmap(scratch, dtype, "w+", shape=(max(num_rows, 1),))
    for start in range(0, num_rows, _BLOCK):
        forest[start : start + _BLOCK] = np.arange(start, min(start + _BLOCK, num_rows))
    for first, second in edges:
        roots, place = np.unique(np.concatenate([_root(forest, first), _root(forest, second)]), return_inverse=True)
        one, two = place[: len(first)], place[len(first) :]
        graph = coo_array((np.ones(len(one), dtype=bool), (one, two)), shape=(len(roots), len(roots)))
        count, label = connected_components(graph, directed=False)
        smallest = np.full(count, num_rows)
        np.minimum.at(smallest, label, roots)
        forest[roots] = smallest[label]
    for start in range(0, num_rows, _BLOCK):
        forest[start : start + _BLOCK] = _root(forest, np.arange(start, min(start + _BLOCK, num_rows)))
    return forest[:num_rows]


def _root(forest: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The root of the tree each of `rows` is in; they point to it from now on."""
    root = forest[rows]
    while not np.array_equal(above := forest[root], root):
        root = above
    forest[rows] = root
    return root
