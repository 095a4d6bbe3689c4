"""Ranges of bytes from object stores: S3, Google's, web servers, whatever fsspec reads."""

import errno
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from fsspec.core import url_to_fs
from fsspec.spec import AbstractFileSystem

from curation.base.errors import DataError


class Range(NamedTuple):
    """Some bytes of an object."""

    url: str
    offset: int
    size: int


def is_url(place: str) -> bool:
    """Whether this is in a store, not a path."""
    return "://" in place


def fetch(ranges: Sequence[Range]) -> list[bytes | Exception]:
    """The bytes of each, all asked for at once; or why they did not come. Fewer come from the end of an object."""
    result: list[bytes | Exception] = [b""] * len(ranges)
    by_store = defaultdict(list)
    for number, one in enumerate(ranges):
        if one.size:
            store, path = _opened(one.url)
            by_store[store].append((number, path, one.offset, one.offset + one.size))
    for store, wanted in by_store.items():
        numbers, paths, first, end = (list(column) for column in zip(*wanted, strict=True))
        try:
            found = store.cat_ranges(paths, first, end, on_error="return")
        except Exception as error:  # stores have errors of their own
            found = [error] * len(wanted)
        for number, content in zip(numbers, found, strict=True):
            result[number] = _checked(content, ranges[number].size)
    return result


def _checked(content: bytes | Exception, size: int) -> bytes | Exception:
    if isinstance(content, bytes):
        ignored = OSError(f"{len(content):,} bytes came where {size:,} were asked for: this server knows no ranges")
        return ignored if len(content) > size else content
    # As an answer of the store or in the words of its library: the range begins beyond the end.
    beyond = getattr(content, "status", None) == 416 or getattr(content, "errno", None) == errno.EINVAL
    return b"" if beyond else content


def missing(places: Sequence[str]) -> list[str]:
    """Those of these paths and URLs that are not there. Web servers are not asked, they have no lists of what is there."""
    by_folder = defaultdict(list)
    for place in places:
        by_folder[place.rpartition("/")[0]].append(place)
    gone = []
    for folder, inside in by_folder.items():
        store, path = _opened(folder)
        if folder.startswith(("http://", "https://")):
            continue
        try:
            found = {name.rpartition("/")[2] for name in store.ls(path, detail=False)}
        except FileNotFoundError:
            found = set()
        except Exception as error:
            raise DataError(f"{folder} cannot be listed: {error!r}. See that it can be reached from here, and read.") from error
        gone += [place for place in inside if place.rpartition("/")[2] not in found]
    return gone


def _opened(url: str) -> tuple[AbstractFileSystem, str]:
    """What reads the URL, and how that calls it. Raises DataError if nothing that is installed does."""
    try:
        return url_to_fs(url)
    except (ImportError, ValueError, TypeError) as error:
        raise DataError(f"{url} cannot be read here: {error}") from error
