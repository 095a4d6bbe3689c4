"""Embedding sources: the seam through which rows reach the numerics without ever being all in memory."""

from collections.abc import Iterator
from typing import Protocol

import numpy as np

Block = tuple[int, np.ndarray]
_HELD = 2**26
"""Numbers of row data held at once."""


class EmbeddingSource(Protocol):
    """(N, D) floating-point rows, read in blocks."""

    @property
    def num_rows(self) -> int: ...

    @property
    def dim(self) -> int: ...

    def blocks(self) -> Iterator[Block]:
        """Yield (first row, rows (B, D)) in ascending order."""
        ...

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(M, D): the rows at indices `rows` (M,), in memory; for samples, not for all rows."""
        ...


class SharedSource(EmbeddingSource, Protocol):
    """A source that every worker can read as a whole, and of which each reads a share."""

    def share(self, worker: int, num_workers: int) -> EmbeddingSource:
        """The rows of worker `worker`: whole blocks, which are the same for any number of workers."""
        ...


class ArraySource:
    """The rows of one array (N, D), in memory or memory-mapped."""

    def __init__(self, array: np.ndarray, *, block_rows: int = 16384) -> None:
        if array.ndim != 2:
            raise ValueError(f"an embedding array has two axes (rows, dimensions); this one has shape {array.shape}")
        self._array = array
        self._block_rows = block_rows
        self.num_rows, self.dim = array.shape

    def blocks(self) -> Iterator[Block]:
        for start in range(0, self.num_rows, self._block_rows):
            yield start, self._array[start : start + self._block_rows]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self._array[rows]

    def share(self, worker: int, num_workers: int) -> "ArraySource":
        blocks = share_of(-(-self.num_rows // self._block_rows), worker, num_workers)
        return ArraySource(
            self._array[blocks.start * self._block_rows : blocks.stop * self._block_rows], block_rows=self._block_rows
        )


class Subset:
    """The rows of another source at ascending indices `rows` (M,); copies nothing and streams as that source does."""

    def __init__(self, source: EmbeddingSource, rows: np.ndarray) -> None:
        self._source = source
        self._rows = rows
        self.num_rows = len(rows)
        self.dim = source.dim

    def blocks(self) -> Iterator[Block]:
        for start, block in self._source.blocks():
            low, high = np.searchsorted(self._rows, [start, start + len(block)])
            if high > low:
                yield int(low), block[self._rows[low:high] - start]

    def take(self, rows: np.ndarray) -> np.ndarray:
        return self._source.take(self._rows[rows])


def groups_of(source: EmbeddingSource, rows: np.ndarray, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of each group, (n, D) float32; group g has the indices `rows[offsets[g]]` to `rows[offsets[g + 1]]`.

    `offsets` is (G + 1,). As many groups are read at once as fit in memory, at least one.
    """
    batch = offsets[1:] * source.dim // _HELD
    for number in np.unique(batch):
        low, high = np.searchsorted(batch, [number, number + 1])
        indices = rows[offsets[low] : offsets[high]]
        order = np.argsort(indices)  # files are read from front to back
        values = np.empty((len(indices), source.dim), dtype=np.float32)
        values[order] = source.take(indices[order])
        yield from np.split(values, offsets[low + 1 : high] - offsets[low])


def share_of(num: int, worker: int, num_workers: int) -> range:
    """The contiguous share of range(`num`) that belongs to one of `num_workers`; shares differ by at most one in length."""
    return range(num * worker // num_workers, num * (worker + 1) // num_workers)
