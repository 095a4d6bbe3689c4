"""Where bytes are, and reading them."""

import os
import time
from dataclasses import dataclass

from curation.base.errors import DataError

_TRIES = 4


@dataclass(frozen=True)
class Location:
    """Some bytes of a file, or of an object in a store."""

    url: str
    """A path, or a URL that fsspec reads."""
    offset: int
    size: int

    def read(self, tries: int = _TRIES) -> bytes:
        """The bytes; fewer if the file ends before them.

        A file system or network that fails is asked again, so many `tries`, 1, 2 and 4 seconds apart. Raises DataError if it
        goes on: a fault of the storage says nothing about a sample.
        """
        for tried in range(tries):
            try:
                return self._read()
            except OSError as error:
                if tried == tries - 1:
                    raise DataError(
                        f"{self.url} cannot be read, tried {tries} times: {error.strerror or error}. See that its file system "
                        "can be reached and that this user may read it; then run again, which continues."
                    ) from error
                time.sleep(2**tried)
        raise AssertionError

    def _read(self) -> bytes:
        if "://" in self.url:
            from trainers.data import stores  # fsspec takes a moment to load

            (content,) = stores.fetch([stores.Range(self.url, self.offset, self.size)])
            if isinstance(content, Exception):
                raise content if isinstance(content, OSError) else OSError(str(content))
            return content
        descriptor = os.open(self.url, os.O_RDONLY)
        try:
            return os.pread(descriptor, self.size, self.offset)
        finally:
            os.close(descriptor)
