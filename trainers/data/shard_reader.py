"""Reads the bytes of samples out of tar shards, on disk and in object stores."""

import os
import time
import zlib
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from curation.base.errors import DataError
from trainers.data import stores
from trainers.data.decoding import decode
from trainers.data.samples import SampleList

RESTORE = "Restore it, or shard the source again."
_CHANGED = f"The shard was changed after it was written. {RESTORE}"
UNREADABLE = "Its bytes are those that were sharded. Shard the source again, which sets aside what cannot be decoded."
_OPEN_FILES = 256


class ShardReader:
    """Reads samples by their index in a list, from files, which stay open, and from object stores; safe to use from threads."""

    def __init__(self, samples: SampleList, *, tries: int = 5) -> None:
        """`tries`: how often to ask a store for bytes that do not arrive, 1, 2, 4 and 8 seconds apart."""
        self._samples = samples
        self._tries = tries
        self._file = lru_cache(_OPEN_FILES)(lambda shard: _OpenFile(samples.shards[shard]))
        self._fetched: dict[int, bytes | Exception] = {}

    def ahead(self, indices: Iterable[int]) -> None:
        """Fetch the samples at `indices` that are in a store, all at once; `read` then returns them without waiting."""
        remote = [int(index) for index in indices if stores.is_url(self._shard(index))]
        contents = stores.fetch([self._range(index) for index in remote])
        self._fetched.update(zip(remote, contents, strict=True))

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
                f"Shard {self._shard(index)} cannot be read, tried {self._tries} times: {content!r}. Check that the store "
                "can be reached and read from this machine; then run again, which continues."
            ) from content
        return content


class _OpenFile:
    """A file that closes when the last reference goes, so a thread may finish reading after others dropped the file."""

    def __init__(self, path: str) -> None:
        self.descriptor = -1
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"Shard {path} cannot be opened: {error.strerror}. {RESTORE}") from error

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
