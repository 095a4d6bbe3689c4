"""Where rows come from: the seam through which embeddings reach the numerics without ever being all in memory."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

Block = tuple[int, np.ndarray]


class EmbeddingSource(Protocol):
    """(N, D) floating-point rows, read in blocks.

    The cut into blocks belongs to the source and does not depend on the number of workers: worker w of W receives whole
    blocks, so a sum over blocks has the same terms on any number of workers.
    """

    @property
    def num_rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def blocks(self, worker: int = 0, num_workers: int = 1) -> Iterator[Block]:
        """Yield (first row, rows (B, D)) in ascending order, the share of one worker."""
        ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """The rows at ascending indices `rows` (M,), as (M, D). Held in memory: for samples, not for everything."""
        ...


class ArraySource:
    """Rows of one array, in memory or memory-mapped."""

    def __init__(self, array: np.ndarray, *, block_rows: int = 16384) -> None:
        if array.ndim != 2:
            raise ValueError(f"an embedding array has two axes (rows, dimensions); this one has shape {array.shape}")
        self._array = array
        self._block_rows = block_rows
        self.num_rows, self.dim = array.shape

    def blocks(self, worker: int = 0, num_workers: int = 1) -> Iterator[Block]:
        starts = range(0, self.num_rows, self._block_rows)
        for start in share(starts, worker, num_workers):
            yield start, self._array[start : start + self._block_rows]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self._array[rows]


class Subset:
    """Some rows of another source, given by ascending indices `rows` (M,). Streams with it; copies nothing."""

    def __init__(self, source: EmbeddingSource, rows: np.ndarray) -> None:
        self._source = source
        self._rows = rows
        self.num_rows = len(rows)
        self.dim = source.dim

    def blocks(self, worker: int = 0, num_workers: int = 1) -> Iterator[Block]:
        for start, block in self._source.blocks(worker, num_workers):
            low, high = np.searchsorted(self._rows, [start, start + len(block)])
            if high > low:
                yield int(low), block[self._rows[low:high] - start]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self._source.take(self._rows[rows])


def share(items: range, worker: int, num_workers: int) -> range:
    """The contiguous share of `items` that belongs to one worker; shares differ by at most one item."""
    return items[len(items) * worker // num_workers : len(items) * (worker + 1) // num_workers]
