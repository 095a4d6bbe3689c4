"""Embeddings in files: .npy, Arrow IPC or Parquet, one file or a directory of them, never all in memory."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from curation.embeddings.source import Block, share_of

SUFFIXES = (".npy", ".arrow", ".feather", ".parquet")
_EMBEDDING, _ROW_ID = "embedding", "row_id"
_BLOCK_ROWS = 16384

Index = np.ndarray | slice


class _Piece(Protocol):
    """Consecutive rows of a file that are read at once."""

    num_rows: int

    def rows(self, index: Index) -> np.ndarray:
        """(M, D): the rows at positions `index` within the piece."""
        ...

    def ids(self) -> np.ndarray | None:
        """(num_rows,) int64: their row ids; None if the file has none."""
        ...


class EmbeddingFiles:
    """The rows of several files, one after another, as a `curation.embeddings.source.SharedSource`.

    Arrow and Parquet files have a column `embedding` of lists of equal length and may have a column `row_id`; without it rows
    are numbered from 0. Arrow and .npy files are memory-mapped; Parquet files are read by row group. With `normalize` rows are
    scaled to unit length, in the type of the file.
    """

    def __init__(self, pieces: Sequence[_Piece], dim: int, *, normalize: bool = False) -> None:
        self._pieces = pieces
        self._normalize = normalize
        self._ends = np.cumsum([piece.num_rows for piece in pieces], dtype=np.int64)
        self.num_rows = int(self._ends[-1]) if len(pieces) else 0
        self.dim = dim

    @classmethod
    def open(cls, paths: Path | Sequence[Path], *, normalize: bool = False) -> "EmbeddingFiles":
        """Open files, and all files of directories in the order of their names.

        Raises DataError if there are none, if one cannot be read as embeddings, or if their dimensions differ.
        """
        files: list[Path] = []
        for path in [paths] if isinstance(paths, Path) else paths:
            files += sorted(file for file in path.iterdir() if file.suffix in SUFFIXES) if path.is_dir() else [path]
        if not files:
            raise DataError(f"There are no embeddings in {paths}. Expected files ending in {', '.join(SUFFIXES)}.")
        pieces: list[_Piece] = []
        dims: dict[int, Path] = {}
        for path in files:
            try:
                file_pieces, dim = _pieces_of(path)
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                raise DataError(
                    f"{path} cannot be read as embeddings: {error}. Expected a .npy array of two axes, or an Arrow or Parquet "
                    f"file with a column {_EMBEDDING!r} of lists of equal length."
                ) from error
            pieces += file_pieces
            dims[dim] = path
        if len(dims) > 1:
            counts = ", ".join(f"{dim} in {path.name}" for dim, path in dims.items())
            raise DataError(f"Embeddings differ in their number of dimensions: {counts}. Give files of one encoder only.")
        return cls(pieces, next(iter(dims)), normalize=normalize)

    def share(self, worker: int, num_workers: int) -> "EmbeddingFiles":
        pieces = share_of(len(self._pieces), worker, num_workers)
        return EmbeddingFiles(self._pieces[pieces.start : pieces.stop], self.dim, normalize=self._normalize)

    def row_ids(self) -> np.ndarray:
        """(N,) int64: the row ids of all rows; 0 to N - 1 unless all files have them."""
        pieces = [ids for piece in self._pieces if (ids := piece.ids()) is not None]
        if len(pieces) < len(self._pieces):
            return np.arange(self.num_rows)
        return np.concatenate([np.empty(0, np.int64), *pieces])

    def blocks(self) -> Iterator[Block]:
        for piece, end in zip(self._pieces, self._ends, strict=True):
            yield int(end) - piece.num_rows, self._scaled(piece.rows(slice(None)))

    def take(self, rows: np.ndarray) -> np.ndarray:
        owner = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(owner, kind="stable")
        out: np.ndarray | None = None
        for positions in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            if len(positions) == 0:
                continue
            number = owner[positions[0]]
            piece = self._pieces[number]
            values = self._scaled(piece.rows(rows[positions] - (self._ends[number] - piece.num_rows)))
            out = np.empty((len(rows), self.dim), dtype=values.dtype) if out is None else out
            out[positions] = values
        return np.empty((0, self.dim), dtype=np.float32) if out is None else out

    def _scaled(self, rows: np.ndarray) -> np.ndarray:
        if not self._normalize:
            return rows
        wide = rows.astype(np.float32)
        wide /= np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
        return wide.astype(rows.dtype)


def _pieces_of(path: Path) -> tuple[list[_Piece], int]:
    """The pieces that a file is read in, and its number of dimensions."""
    if path.suffix == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if array.ndim != 2 or array.dtype.kind != "f":
            raise ValueError(f"it holds an array of {array.dtype} with shape {array.shape}")
        return [_ArrayPiece(array[i : i + _BLOCK_ROWS]) for i in range(0, len(array), _BLOCK_ROWS)], array.shape[1]
    if path.suffix == ".parquet":
        file = pq.ParquetFile(path)
        pieces = [_GroupPiece(path, i, file.metadata.row_group(i).num_rows) for i in range(file.num_row_groups)]
        return list(pieces), pieces[0].rows(slice(0, 1)).shape[1] if pieces else 0
    reader = pa.ipc.open_file(pa.memory_map(str(path)))
    batches = [_BatchPiece(reader.get_batch(i)) for i in range(reader.num_record_batches)]
    reader.schema.field(_EMBEDDING)
    return list(batches), batches[0].rows(slice(0, 1)).shape[1] if batches else 0


class _ArrayPiece:
    """Rows of a memory-mapped .npy file."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.num_rows = len(array)

    def rows(self, index: Index) -> np.ndarray:
        return self._array[index]

    def ids(self) -> None:
        return None


class _BatchPiece:
    """A record batch of a memory-mapped Arrow file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch
        self.num_rows = batch.num_rows

    def rows(self, index: Index) -> np.ndarray:
        return _matrix(self._batch.column(_EMBEDDING))[index]

    def ids(self) -> np.ndarray | None:
        return self._batch.column(_ROW_ID).to_numpy() if _ROW_ID in self._batch.schema.names else None


class _GroupPiece:
    """A row group of a Parquet file."""

    def __init__(self, path: Path, group: int, num_rows: int) -> None:
        self._path, self._group = path, group
        self.num_rows = num_rows

    def rows(self, index: Index) -> np.ndarray:
        table = pq.ParquetFile(self._path).read_row_group(self._group, [_EMBEDDING])
        return _matrix(table.column(_EMBEDDING).combine_chunks())[index]

    def ids(self) -> np.ndarray | None:
        file = pq.ParquetFile(self._path)
        if _ROW_ID not in file.schema_arrow.names:
            return None
        return file.read_row_group(self._group, [_ROW_ID]).column(0).to_numpy()


def _matrix(column: pa.Array) -> np.ndarray:
    """(B, D): the rows of a column of lists of equal length."""
    if column.null_count:
        raise ValueError(f"{column.null_count} rows have no embedding")
    values = column.flatten().to_numpy(zero_copy_only=False)
    if len(column) and len(values) % len(column):
        raise ValueError("the lists differ in length")
    return values.reshape(len(column), -1)
