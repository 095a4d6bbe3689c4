"""Ranges of bytes from object stores: S3, Google's, web servers, whatever fsspec reads."""

import errno
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from curation.base.errors import DataError

if TYPE_CHECKING:
    from fsspec.spec import AbstractFileSystem


class Range(NamedTuple):
    """A range of bytes of an object."""

    url: str
    offset: int
    size: int


def is_url(place: str) -> bool:
    """Whether this place is a URL of a store rather than a path."""
    return "://" in place


def fetch(ranges: Sequence[Range]) -> list[bytes | Exception]:
    """Fetch the ranges, all at once: the bytes of each, fewer at the end of an object, or the error."""
    result: list[bytes | Exception] = [b""] * len(ranges)
    by_store = defaultdict(list)
    for number, span in enumerate(ranges):
        if span.size:
            store, path = _open_store(span.url)
            by_store[store].append((number, path, span.offset, span.offset + span.size))
    for store, requests in by_store.items():
        numbers, paths, first, end = (list(column) for column in zip(*requests, strict=True))
        try:
            contents = store.cat_ranges(paths, first, end, on_error="return")
        except Exception as error:  # each store has its own error types
            contents = [error] * len(requests)
        for number, content in zip(numbers, contents, strict=True):
            result[number] = _checked(content, ranges[number].size)
    return result


def _checked(content: bytes | Exception, size: int) -> bytes | Exception:
    if isinstance(content, bytes):
        too_many = OSError(f"{len(content):,} bytes came where {size:,} were requested: this server does not support ranges")
        return too_many if len(content) > size else content
    # The range begins beyond the end: HTTP status 416 of the store, or EINVAL of its library.
    beyond = getattr(content, "status", None) == 416 or getattr(content, "errno", None) == errno.EINVAL
    return b"" if beyond else content


def missing(places: Sequence[str]) -> list[str]:
    """The paths and URLs among `places` that do not exist. Web servers are not asked: they cannot list a folder."""
    by_folder = defaultdict(list)
    for place in places:
        by_folder[place.rpartition("/")[0]].append(place)
    absent = []
    for folder, inside in by_folder.items():
        store, path = _open_store(folder)
        if folder.startswith(("http://", "https://")):
            continue
        try:
            names = {name.rpartition("/")[2] for name in store.ls(path, detail=False)}
        except FileNotFoundError:
            names = set()
        except Exception as error:
            raise DataError(
                f"{folder} cannot be listed: {error!r}. Check that it can be reached and read from this machine."
            ) from error
        absent += [place for place in inside if place.rpartition("/")[2] not in names]
    return absent


def _open_store(url: str) -> tuple["AbstractFileSystem", str]:
    """The file system of a URL, and the path in it. Raises DataError if no installed library reads such URLs."""
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(url)
    except (ImportError, ValueError, TypeError) as error:
        raise DataError(f"{url} cannot be read here: {error}") from error
