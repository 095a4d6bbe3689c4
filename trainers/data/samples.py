"""Where samples are: the bytes of images inside tar shards, by position."""

import os
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from trainers.data import stores
from trainers.data.decoding import decode

PLACE = ("row_id", "shard", "offset", "size", "crc32")
"""Columns of an index that say where a sample is, and how to know it."""
ROWS_PER_EPOCH = "rows_per_epoch"
"""In the schema's metadata of a training list: how many of its rows an epoch shows, others each time."""
RESTORE = "Restore it, or shard the source again."
_CHANGED = f"The shard was changed after it was written. {RESTORE}"
UNREADABLE = "Its bytes are those that were sharded. Shard the source again, which sets aside what cannot be decoded."
SHARDS_URL = "shards.url"
"""Beside an index whose shards were moved into an object store: the URL of where they are now."""
_OPEN_FILES = 256


@dataclass(frozen=True)
class SampleList:
    """Samples inside tar shards: where the bytes of each begin and end. N rows."""

    shards: tuple[str, ...]
    """Paths, or URLs of what fsspec reads."""
    shard: np.ndarray
    """(N,) int32: index into `shards`."""
    offset: np.ndarray
    """(N,) int64: of the image's first byte in its tar."""
    size: np.ndarray
    """(N,) int64: bytes."""
    crc32: np.ndarray
    """(N,) uint32: of these bytes."""
    row_id: np.ndarray
    """(N,) int64."""
    repeats: np.ndarray
    """(N,) int32: how often an epoch shows the sample."""
    per_epoch: int | None = None
    """How many an epoch shows, drawn anew each time; None: all."""
    label: np.ndarray | None = None
    """(N,) int64: a class or cluster, where the order looks at it."""
    parts: tuple[tuple["SampleList", float], ...] = ()
    """Where this is a mixture: the lists it was joined from, in turn, and the weight of each."""

    @classmethod
    def read(cls, path: Path, shard_directory: Path, label: str | None = None) -> "SampleList":
        """Read a training list, a Parquet file with the columns that `of` wants."""
        try:
            table = pq.read_table(path)
        except (OSError, pa.ArrowInvalid) as error:
            raise DataError(f"{path} is no readable Parquet file: {error}") from error
        wanted = [*PLACE, *([label] if label else [])]
        if missing := [name for name in wanted if name not in table.column_names]:
            raise DataError(f"{path} lacks the columns {missing}; found {table.column_names}.")
        return cls.of(table, shard_directory, label)

    @classmethod
    def of(cls, table: pa.Table, shard_directory: Path, label: str | None = None) -> "SampleList":
        """From the columns of `PLACE`, optionally repeats, and `label`.

        `shard` is relative to the directory, or to the URL that it has in a file shards.url.
        """
        where = _where(shard_directory)
        shards = table["shard"].combine_chunks().dictionary_encode()
        repeats = "repeats" in table.column_names
        per_epoch = (table.schema.metadata or {}).get(ROWS_PER_EPOCH.encode())
        return cls(
            shards=tuple(f"{where}/{name}" for name in shards.dictionary.to_pylist()),
            shard=shards.indices.to_numpy(zero_copy_only=False).astype(np.int32),
            offset=table["offset"].to_numpy(),
            size=table["size"].to_numpy(),
            crc32=table["crc32"].to_numpy(),
            row_id=table["row_id"].to_numpy(),
            repeats=table["repeats"].to_numpy() if repeats else np.ones(table.num_rows, dtype=np.int32),
            per_epoch=int(per_epoch) if per_epoch else None,
            label=table[label].to_numpy().astype(np.int64) if label else None,
        )

    @classmethod
    def mix(cls, parts: Sequence[tuple["SampleList", float]]) -> "SampleList":
        """One list of several, each shown as often as its weight says, whatever its size. Row ids stay as they are."""
        if min(weight for _, weight in parts) < 0 or sum(weight for _, weight in parts) <= 0:
            raise DataError(f"The weights of a mixture must be positive; found {[weight for _, weight in parts]}.")
        lists = [samples for samples, _ in parts]
        first_shard = np.cumsum([0, *(len(samples.shards) for samples in lists)])
        return cls(
            shards=tuple(shard for samples in lists for shard in samples.shards),
            shard=np.concatenate([s.shard + first for s, first in zip(lists, first_shard, strict=False)]).astype(np.int32),
            offset=np.concatenate([samples.offset for samples in lists]),
            size=np.concatenate([samples.size for samples in lists]),
            crc32=np.concatenate([samples.crc32 for samples in lists]),
            row_id=np.concatenate([samples.row_id for samples in lists]),
            repeats=np.concatenate([samples.repeats for samples in lists]),
            parts=tuple(parts),
        )

    def __len__(self) -> int:
        return len(self.row_id)

    def bad(self, index: int, why: str) -> "BadSampleError":
        """What to tell the user of a sample that cannot be read or decoded."""
        place = f"{self.row_id[index]} at byte {self.offset[index]} of {self.shards[self.shard[index]]}"
        return BadSampleError(f"Sample {place} cannot be read: {why}")


class BadSampleError(DataError):
    """One sample cannot be read or decoded; others may be."""


class ShardReader:
    """Reads samples by position, from shards that stay open and from stores, from any number of threads."""

    def __init__(self, samples: SampleList, *, tries: int = 5) -> None:
        """Ask a store so often for what does not come, 1, 2, 4 and 8 seconds apart."""
        self._samples = samples
        self._tries = tries
        self._file = lru_cache(_OPEN_FILES)(lambda shard: _OpenFile(samples.shards[shard]))
        self._fetched: dict[int, bytes | Exception] = {}

    def ahead(self, indices: Iterable[int]) -> None:
        """Fetch all of these that are in a store at once, where one after another would wait for each. `read` takes them."""
        far = [int(index) for index in indices if stores.is_url(self._shard(index))]
        contents = stores.fetch([self._range(index) for index in far])
        self._fetched.update(zip(far, contents, strict=True))

    def read(self, index: int) -> bytes:
        """The bytes of one sample. Raises DataError if its shard cannot be opened, BadSampleError if it does not hold them."""
        content = self._fetch(index) if stores.is_url(self._shard(index)) else self._pread(index)
        if len(content) < self._samples.size[index]:
            raise self._samples.bad(index, f"{len(content):,} of its {self._samples.size[index]:,} bytes are there. {_CHANGED}")
        if zlib.crc32(content) != self._samples.crc32[index]:
            raise self._samples.bad(index, f"its bytes do not match their checksum. {_CHANGED}")
        return content

    def image(self, index: int) -> np.ndarray:
        """One sample, decoded: (H, W, 3) uint8. Raises as `read` does."""
        content = self.read(index)
        try:
            return decode(content)
        except DataError as error:
            raise self._samples.bad(index, f"{error}. {UNREADABLE}") from error

    def _shard(self, index: int) -> str:
        return self._samples.shards[self._samples.shard[index]]

    def _range(self, index: int) -> stores.Range:
        return stores.Range(self._shard(index), int(self._samples.offset[index]), int(self._samples.size[index]))

    def _pread(self, index: int) -> bytes:
        file = self._file(int(self._samples.shard[index]))
        try:
            return os.pread(file.descriptor, int(self._samples.size[index]), int(self._samples.offset[index]))
        except OSError as error:
            raise self._samples.bad(index, f"{error}. {_CHANGED}") from error

    def _fetch(self, index: int) -> bytes:
        content = self._fetched.pop(index, None) or stores.fetch([self._range(index)])[0]
        for tried in range(1, self._tries):
            if isinstance(content, bytes | FileNotFoundError):
                break
            time.sleep(2 ** (tried - 1))
            content = stores.fetch([self._range(index)])[0]
        if isinstance(content, FileNotFoundError):
            raise DataError(f"Shard {self._shard(index)} is not there. {RESTORE}") from content
        if isinstance(content, Exception):
            raise DataError(
                f"Shard {self._shard(index)} cannot be read, tried {self._tries} times: {content!r}. See that the store can be "
                "reached from here and lets you read; then run again, which continues."
            ) from content
        return content


class _OpenFile:
    """Closes when nobody holds it any more, so a thread may read on while others forget the file."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"Shard {path} cannot be opened: {error.strerror}. {RESTORE}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


def _where(directory: Path) -> str:
    """The place of the shards that an index in `directory` means."""
    moved = directory / SHARDS_URL
    if not moved.exists():
        return str(directory)
    url = moved.read_text().strip()
    if not stores.is_url(url):
        raise DataError(f"{moved} must say where the shards are, such as s3://bucket/folder; found {url!r}.")
    return url.rstrip("/")
