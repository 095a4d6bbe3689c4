"""Finding the images of a source: what exists, where its bytes are, and what its path says about it."""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

import numpy as np
import zstandard

from curation.base import rng
from curation.base.errors import DataError
from curation.base.files import atomic_path
from trainers.data.decoding import SUFFIXES

POOL, HELD_OUT, QUERY = SPLITS = ("train", "test", "query")
"""What may be selected and trained on, what is measured on, and examples of what a selector should look for."""
_HELD_OUT_NAMES = ("test", "val", "valid", "validation")
_SPLITS = {"train": POOL, **dict.fromkeys(_HELD_OUT_NAMES, HELD_OUT), "query": QUERY, "queries": QUERY}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst")
_MAX_UNPACKED_RATIO = 200


@dataclass(frozen=True)
class Found:
    """One image file, or one member of a tar."""

    source: str
    """Its path inside the source; unique."""
    file: Path
    """The file that holds its bytes."""
    offset: int
    size: int
    split: str
    label: str | None
    problem: str | None = None
    """Why it cannot be used, if that is known already."""


def find_images(path: Path, unpack_to: Path) -> list[Found]:
    """Every image of the source, sorted by its path inside the source.

    Compressed tars are unpacked (to plain tars, never to files) into `unpack_to` first. Raises DataError if there is
    nothing, or if something may not be read: a folder left out in silence would be a dataset with a hole.
    """
    if not path.exists():
        raise DataError(f"source.path {path} does not exist. Correct the path; relative paths start at {Path.cwd()}.")
    try:
        found = list(_walk(path, path, unpack_to)) if path.is_dir() else list(_read_tar(path, path.name, unpack_to))
    except PermissionError as error:
        raise DataError(
            f"{error.filename or path} may not be read by this user. Change its permissions, or move it out of the source."
        ) from error
    if not found:
        raise DataError(
            f"There are no images in {path}. Expected files ending in {', '.join(sorted(SUFFIXES))}, "
            "in folders of any depth, or tars of them (.tar, .tar.gz, .tgz, .tar.zst)."
        )
    return sorted(found, key=lambda image: image.source)


def _walk(root: Path, directory: Path, unpack_to: Path) -> Iterator[Found]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            name = _printable(path.relative_to(root).as_posix())
            if path.is_dir():  # False, not an error, for a link to itself
                # A link back to a folder we are in holds nothing new, and no end.
                if not directory.resolve().is_relative_to(path.resolve()):
                    yield from _walk(root, path, unpack_to)
            elif _printable(entry.path) != entry.path:
                if path.suffix.lower() in {".tar", *SUFFIXES} or name.endswith(_COMPRESSED):
                    yield Found(name, Path(_printable(entry.path)), 0, 0, POOL, None, problem="file name is not UTF-8")
            elif name.endswith((".tar", *_COMPRESSED)):
                yield from _read_tar(path, name, unpack_to)
            elif path.suffix.lower() in SUFFIXES:
                split, label = _meaning(name)
                try:
                    yield Found(name, path, 0, entry.stat().st_size, split, label)
                except PermissionError:
                    raise
                except OSError:
                    yield Found(name, path, 0, 0, split, label, problem="dangling link")


def _read_tar(path: Path, name: str, unpack_to: Path) -> Iterator[Found]:
    """The images of one tar by offset. Members are never extracted, so no path in the tar can lead anywhere."""
    if name.endswith(_COMPRESSED):
        path = _unpack(path, unpack_to / f"{rng.key(name):016x}.tar")
    elif not name.endswith(".tar"):
        raise DataError(f"{path} is neither a folder nor a tar. Give a folder of images, a .tar, a .tar.gz or a .tar.zst.")
    inside = PurePosixPath(name)
    stem = inside.parent / inside.name.split(".tar")[0].removesuffix(".tgz")
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile() or PurePosixPath(member.name).suffix.lower() not in SUFFIXES:
                    continue
                split, label = _meaning(_printable(member.name))
                cut = member.offset_data + member.size > total
                yield Found(
                    source=f"{stem}/{_printable(member.name)}",
                    file=path,
                    offset=member.offset_data,
                    size=member.size,
                    split=split,
                    label=label,
                    problem="truncated tar" if cut else None,
                )
            # A damaged header ends the iteration in silence; a whole tar ends in zeros.
            if any(_bytes_at(path, archive.offset, tarfile.BLOCKSIZE)):
                yield Found(name, path, 0, 0, POOL, None, problem=f"damaged tar: no header at byte {archive.offset}")
    except tarfile.ReadError as error:
        # What came before the damage is good. The damage itself becomes a reject that names the tar.
        yield Found(name, path, 0, 0, POOL, None, problem=f"damaged tar: {error}")


def _printable(name: str) -> str:
    """A path as UTF-8, with what is not written as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _bytes_at(path: Path, offset: int, num: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(num)


def _unpack(path: Path, target: Path) -> Path:
    """Decompress a tar once, under a limit on how much it may grow."""
    if target.exists():
        return target
    limit = path.stat().st_size * _MAX_UNPACKED_RATIO + 2**20
    with atomic_path(target) as temporary, temporary.open("wb") as plain, _decompressed(path) as stream:
        try:
            while chunk := stream.read(2**20):
                plain.write(chunk)
                if plain.tell() > limit:
                    raise DataError(
                        f"{path} unpacks to more than {_MAX_UNPACKED_RATIO} times its size, which images never do. "
                        "If you trust it, unpack it yourself and give the plain tar."
                    )
        except (EOFError, OSError, zlib.error, zstandard.ZstdError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            # Cut short: keep what could be read; reading the tar reports the rest.
    return target


def _decompressed(path: Path) -> BinaryIO:
    if path.name.endswith(".zst"):
        return zstandard.open(path, "rb")
    return cast(BinaryIO, gzip.open(path, "rb"))


def _meaning(name: str) -> tuple[str, str | None]:
    """Split and label of a path: train/cat/1.jpg is (train, cat); cat/1.jpg the same; 1.jpg has no label."""
    folders = [part for part in PurePosixPath(name).parts[:-1] if part not in ("/", ".", "..")]
    split = next((_SPLITS[part.lower()] for part in folders if part.lower() in _SPLITS), POOL)
    label = folders[-1] if folders and folders[-1].lower() not in _SPLITS else None
    return split, label


def thin_to_long_tail(found: list[Found], factor: float) -> list[Found]:
    """Thin the labelled images of the pool to Zipf's law over their labels in alphabetical order."""
    labels = sorted({image.label for image in found if image.split == POOL and image.label is not None})
    if factor == 1 or not labels:
        return found
    number = {label: index for index, label in enumerate(labels)}
    of_pool = np.array([number.get(image.label or "", -1) if image.split == POOL else -1 for image in found])
    keep = long_tail_counts(np.bincount(of_pool[of_pool >= 0], minlength=len(labels)), factor)
    # Which images stay is decided by their names, so that it never changes.
    ticket = np.array([rng.key("long tail", image.source) for image in found], dtype=np.uint64)
    chosen = of_pool < 0
    for label in range(len(labels)):
        members = np.flatnonzero(of_pool == label)
        chosen[members[np.argsort(ticket[members], kind="stable")[: keep[label]]]] = True
    return [image for image, stays in zip(found, chosen, strict=True) if stays]


def long_tail_counts(sizes: np.ndarray, factor: float) -> np.ndarray:
    """How many of each class (C,) to keep so that counts follow Zipf's law, the first `factor` times the last."""
    shares = np.arange(1, len(sizes) + 1) ** (-np.log(factor) / np.log(max(len(sizes), 2)))
    return np.maximum(1, np.floor((sizes / shares).min() * shares)).astype(np.int64)
