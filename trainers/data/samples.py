"""A list of samples: where the bytes of each are inside tar shards, how often it is shown, and its label."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from trainers.data import stores
from trainers.data.shared_arrays import map_arrays, save_arrays, write_once

PLACE = ("row_id", "shard", "offset", "size", "crc32")
"""Columns of an index that say where the bytes of a sample are, and their checksum."""
REPEATS = "repeats"
"""Column of a training list: how often an epoch shows the sample; without it, once."""
ROWS_PER_EPOCH = "rows_per_epoch"
"""Key in the schema's metadata of a training list: how many of its rows an epoch shows, different ones each time."""
SHARDS_URL = "shards.url"
"""File next to an index whose shards were moved to an object store: the URL of the folder they are in now."""


@dataclass(frozen=True)
class SampleList:
    """Samples inside tar shards, N rows. The columns are arrays in memory, or read-only maps of files (`mapped_list`)."""

    shards: tuple[str, ...]
    """Paths, or URLs that fsspec reads."""
    shard: np.ndarray
    """(N,) int32: index into `shards`."""
    offset: np.ndarray
    """(N,) int64: position of the image's first byte in its tar."""
    size: np.ndarray
    """(N,) int64: number of bytes."""
    crc32: np.ndarray
    """(N,) uint32: checksum of these bytes."""
    row_id: np.ndarray
    """(N,) int64."""
    repeats: np.ndarray | None = None
    """(N,) int32: how often an epoch shows the sample; None: each once."""
    per_epoch: int | None = None
    """Number of entries that an epoch shows, drawn anew each time; None: all."""
    label: np.ndarray | None = None
    """(N,) int64: a class or cluster, where the order or the method uses one."""
    parts: tuple[tuple["SampleList", float], ...] = ()
    """The lists that a mixture joins, in the order of their rows, with their weights; empty if this is no mixture."""
    cache: Path | None = field(default=None, compare=False)
    """Directory that the processes of a machine share for arrays derived from the columns; None: each process has its own."""

    @classmethod
    def read(cls, path: Path, shard_directory: Path, label: str | None = None) -> "SampleList":
        """Read a training list, a Parquet file with the columns that `of` takes, into memory."""
        file = open_list(path, label)
        return cls.of(file.read(columns=list_columns(file.schema_arrow, label)), shard_directory, label)

    @classmethod
    def of(cls, table: pa.Table, shard_directory: Path, label: str | None = None) -> "SampleList":
        """Make a list of a table with the columns of `PLACE`, optionally `repeats`, and the column `label` if it is given.

        The column `shard` is relative to `shard_directory`, or to the URL in the file shards.url there.
        """
        base = shard_base(shard_directory)
        shards = table["shard"].combine_chunks().dictionary_encode()
        repeats = table[REPEATS].to_numpy() if REPEATS in table.column_names else None
        return cls(
            shards=tuple(f"{base}/{name}" for name in shards.dictionary.to_pylist()),
            shard=shards.indices.to_numpy(zero_copy_only=False).astype(np.int32),
            offset=table["offset"].to_numpy(),
            size=table["size"].to_numpy(),
            crc32=table["crc32"].to_numpy(),
            row_id=table["row_id"].to_numpy(),
            repeats=repeats if repeats is not None and (repeats != 1).any() else None,
            per_epoch=rows_per_epoch(table.schema),
            label=table[label].to_numpy().astype(np.int64) if label else None,
        )

    @classmethod
    def mix(cls, parts: Sequence[tuple["SampleList", float]]) -> "SampleList":
        """Join lists into one whose parts are shown in proportion to their weights, whatever their sizes. Row ids stay."""
        check_weights([weight for _, weight in parts])
        lists = [samples for samples, _ in parts]
        first_shard = np.cumsum([0, *(len(samples.shards) for samples in lists)])
        repeats = None
        if any(samples.repeats is not None for samples in lists):
            repeats = np.concatenate([np.ones(len(s), np.int32) if s.repeats is None else s.repeats for s in lists])
        return cls(
            shards=tuple(shard for samples in lists for shard in samples.shards),
            shard=np.concatenate([s.shard + first for s, first in zip(lists, first_shard, strict=False)]).astype(np.int32),
            offset=np.concatenate([samples.offset for samples in lists]),
            size=np.concatenate([samples.size for samples in lists]),
            crc32=np.concatenate([samples.crc32 for samples in lists]),
            row_id=np.concatenate([samples.row_id for samples in lists]),
            repeats=repeats,
            parts=tuple(parts),
        )

    def __len__(self) -> int:
        return len(self.row_id)

    @cached_property
    def _entry_ends(self) -> np.ndarray | None:
        """(N,) int64: number of entries up to and including those of each row; None where every row is one entry."""
        if self.repeats is None:
            return None
        repeats = self.repeats
        return self.derived("entries", lambda: {"ends": np.cumsum(repeats, dtype=np.int64)})["ends"]

    @property
    def num_entries(self) -> int:
        """The number of rows counted with their repeats: a row that an epoch shows three times is three entries."""
        if self._entry_ends is None:
            return len(self)
        return int(self._entry_ends[-1]) if len(self) else 0

    def rows_of_entries(self, entries: np.ndarray) -> np.ndarray:
        """The rows (B,) int64 of `entries` (B,), which are numbers from 0 up to `num_entries`, whole or not."""
        if self._entry_ends is None:
            return entries.astype(np.int64)
        return np.searchsorted(self._entry_ends, entries, side="right")

    def derived(self, name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays that `make` computes from the columns: once per machine and mapped if there is a `cache`, else in memory."""
        if self.cache is None:
            return make()
        write_once(self.cache / name, lambda directory: save_arrays(directory, make()))
        return map_arrays(self.cache / name)

    def bad(self, index: int, why: str) -> "BadSampleError":
        """The error for a sample that cannot be read or decoded."""
        place = f"{self.row_id[index]} at byte {self.offset[index]} of {self.shards[self.shard[index]]}"
        return BadSampleError(f"Sample {place} cannot be read: {why}")


class BadSampleError(DataError):
    """One sample cannot be read or decoded; others may be fine."""


def open_list(path: Path, label: str | None) -> pq.ParquetFile:
    """Open a training list. Raises DataError if it is no Parquet file or lacks a column of `PLACE` or the column `label`."""
    try:
        file = pq.ParquetFile(path, buffer_size=2**20)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path} is no readable Parquet file: {error}") from error
    names = file.schema_arrow.names
    if missing := [name for name in (*PLACE, *([label] if label else [])) if name not in names]:
        raise DataError(f"{path} lacks the columns {missing}; found {names}.")
    return file


def list_columns(schema: pa.Schema, label: str | None) -> list[str]:
    """The columns of a training list that a `SampleList` holds."""
    return [*PLACE, *([REPEATS] if REPEATS in schema.names else []), *([label] if label and label not in PLACE else [])]


def rows_per_epoch(schema: pa.Schema) -> int | None:
    """The number of rows that an epoch shows, as the metadata of a training list says; None: all."""
    value = (schema.metadata or {}).get(ROWS_PER_EPOCH.encode())
    return int(value) if value else None


def shard_base(directory: Path) -> str:
    """The path or URL of the folder of the shards that an index in `directory` refers to."""
    moved = directory / SHARDS_URL
    if not moved.exists():
        return str(directory)
    url = moved.read_text().strip()
    if not stores.is_url(url):
        raise DataError(f"{moved} must say where the shards are, such as s3://bucket/folder; found {url!r}.")
    return url.rstrip("/")


def check_weights(weights: Sequence[float]) -> None:
    """Raise DataError unless the weights of a mixture are at least 0 and not all 0."""
    if min(weights) < 0 or sum(weights) <= 0:
        raise DataError(f"The weights of a mixture must be positive; found {list(weights)}.")
