"""Ranges of bytes from object stores: S3, Google's, web servers, whatever fsspec reads."""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import fsspec
from fsspec.spec import AbstractFileSystem

from curation.errors import ConfigError, DataError


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
    for place, one in enumerate(ranges):
        if one.size:
            by_store[_scheme(one.url)].append(place)
    for scheme, places in by_store.items():
        store = _store(scheme)
        urls, offsets, sizes = zip(*(ranges[place] for place in places), strict=True)
        ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
        try:
            found = store.cat_ranges(list(urls), list(offsets), ends, on_error="return")
        except Exception as error:  # stores have errors of their own
            found = [error] * len(places)
        for place, content in zip(places, found, strict=True):
            if isinstance(content, bytes) and len(content) > ranges[place].size:
                content = OSError(f"{len(content):,} bytes came where {ranges[place].size:,} were asked for")
            result[place] = content
    return result


def missing(places: Sequence[str]) -> list[str]:
    """Those of these paths and URLs that are not there. Web servers are not asked, they have no lists of what is there."""
    by_folder = defaultdict(list)
    for place in places:
        by_folder[place.rpartition("/")[0]].append(place)
    gone = []
    for folder, inside in by_folder.items():
        store = _store(_scheme(folder))
        if _scheme(folder) in ("http", "https"):
            continue
        try:
            found = {name.rpartition("/")[2] for name in store.ls(folder, detail=False)}
        except FileNotFoundError:
            found = set()
        except Exception as error:
            raise DataError(f"{folder} cannot be listed: {error!r}. See that it can be reached from here, and read.") from error
        gone += [place for place in inside if place.rpartition("/")[2] not in found]
    return gone


def _scheme(place: str) -> str:
    return place.partition("://")[0] if is_url(place) else "file"


def _store(scheme: str) -> AbstractFileSystem:
    """What reads URLs that begin so. Raises ConfigError if nothing that is installed does."""
    try:
        return fsspec.filesystem(scheme)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{scheme}:// cannot be read here: {error}") from error
