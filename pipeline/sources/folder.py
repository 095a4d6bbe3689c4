"""Images in a folder tree, in tars, or in a folder of tars: the settings `type: images`."""

import gzip
import json
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, ClassVar, cast

import zstandard

from curation.base import rng
from curation.base.errors import DataError
from curation.base.files import atomic_path
from pipeline.modalities.image import SUFFIXES
from pipeline.modalities.modality import Problem
from pipeline.sources.config import ImagesConfig
from pipeline.sources.source import Record
from pipeline.splits import HELD_OUT, POOL, QUERY
from pipeline.storage.location import Location

_HELD_OUT_NAMES = ("test", "val", "valid", "validation")
_SPLITS = {"train": POOL, **dict.fromkeys(_HELD_OUT_NAMES, HELD_OUT), "query": QUERY, "queries": QUERY}
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst")
_MAX_UNPACKED_RATIO = 200
_MIN_PARTITIONS = 64
"""Folders are opened until there are so many partitions, or no folder is left."""


@dataclass(frozen=True)
class Folder:
    """A partition is a subtree, the files that lie directly in one folder, or a tar."""

    config: ImagesConfig
    modality: ClassVar[str] = "image"

    @property
    def long_tail(self) -> float:
        return self.config.long_tail

    @property
    def root(self) -> Path:
        return self.config.path.expanduser()

    def partitions(self) -> list[str]:
        """As `Source.partitions`. Raises DataError if the path does not exist, or may not be read."""
        root = self.root
        if not root.exists():
            raise DataError(f"source.path {root} does not exist. Correct the path; relative paths start at {Path.cwd()}.")
        if not root.is_dir():
            if not root.name.endswith((".tar", *_COMPRESSED)):
                raise DataError(
                    f"{root} is neither a folder nor a tar. Give a folder of images, a .tar, a .tar.gz or a .tar.zst."
                )
            return [json.dumps(["tar", ""])]
        trees, finished = [""], list[list[str]]()
        while trees and len(trees) + len(finished) < _MIN_PARTITIONS:
            deeper = list[str]()
            for tree in trees:
                folders, tars = self._inside(tree)
                deeper += folders
                finished += [["files", tree], *(["tar", tar] for tar in tars)]
            trees = deeper
        return [json.dumps(partition) for partition in (*finished, *(["tree", tree] for tree in trees))]

    def records(self, partition: str, scratch: Path) -> Iterator[Record]:
        """As `Source.records`. Compressed tars are unpacked, to plain tars, never to files."""
        kind, inside = json.loads(partition)
        path = self.root / inside
        try:
            if kind == "tar":
                yield from _read_tar(path, inside or path.name, scratch)
            else:
                yield from _walk(self.root, path, scratch, deep=kind == "tree")
        except PermissionError as error:
            raise _forbidden(error, path) from error

    def describe_empty(self) -> str:
        """As `Source.describe_empty`."""
        return (
            f"There are no images in {self.root}. Expected files ending in {', '.join(sorted(SUFFIXES))}, "
            "in folders of any depth, or tars of them (.tar, .tar.gz, .tgz, .tar.zst)."
        )

    def size(self) -> tuple[int, int, int]:
        """As `Source.size`. Compressed tars are not unpacked for it: each counts as one sample."""
        pool = others = num_bytes = 0
        for record in (record for partition in self.partitions() for record in _look(self, partition)):
            pool, others = pool + (record.split == POOL), others + (record.split != POOL)
            num_bytes += sum(member.size for member in record.members.values() if isinstance(member, Location))
        return pool, others, num_bytes

    def _inside(self, folder: str) -> tuple[list[str], list[str]]:
        """Folders and tars that lie directly in a folder, relative to the root."""
        directory = self.root / folder
        folders, tars = [], []
        try:
            with os.scandir(directory) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    if entry.name.startswith(".") or _printable(entry.name) != entry.name:
                        continue
                    name = str(PurePosixPath(folder, entry.name))
                    if _is_folder_below(Path(entry.path), directory):
                        folders.append(name)
                    elif entry.name.endswith((".tar", *_COMPRESSED)):
                        tars.append(name)
        except PermissionError as error:
            raise _forbidden(error, directory) from error
        return folders, tars


def _look(folder: Folder, partition: str) -> Iterator[Record]:
    """The records of a partition, as far as they can be listed without unpacking anything."""
    kind, inside = json.loads(partition)
    path = folder.root / inside
    if kind == "tar" and path.name.endswith(_COMPRESSED):
        yield Record(inside, {"": Location(str(path), 0, path.stat().st_size)}, POOL)
    else:
        yield from folder.records(partition, Path(os.devnull))


def _forbidden(error: PermissionError, path: Path) -> DataError:
    """A folder left out in silence would be a dataset with a hole."""
    return DataError(
        f"{error.filename or path} may not be read by this user. Change its permissions, or move it out of the source."
    )


def _is_folder_below(path: Path, directory: Path) -> bool:
    """Whether this is a folder that does not lead back to one that we are in, which holds nothing new, and no end."""
    return path.is_dir() and not directory.resolve().is_relative_to(path.resolve())


def _walk(root: Path, directory: Path, unpack_to: Path, *, deep: bool) -> Iterator[Record]:
    """The images in a folder, and if `deep` those in its tars and in the folders below it."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            name = _printable(path.relative_to(root).as_posix())
            if path.is_dir():  # False, not an error, for a link to itself
                # Folders that are partitions of their own have names that are text.
                if (deep or _printable(entry.name) != entry.name) and _is_folder_below(path, directory):
                    yield from _walk(root, path, unpack_to, deep=True)
            elif _printable(entry.path) != entry.path:
                if path.suffix.lower() in {".tar", *SUFFIXES} or name.endswith(_COMPRESSED):
                    yield _unusable(name, Path(_printable(entry.path)), Problem("file name is not UTF-8"))
            elif name.endswith((".tar", *_COMPRESSED)):
                if deep:
                    yield from _read_tar(path, name, unpack_to)
            elif path.suffix.lower() in SUFFIXES:
                split, label = _meaning(name)
                try:
                    location = Location(str(path), 0, entry.stat().st_size)
                    yield Record(name, {path.suffix.lower(): location}, split, label)
                except PermissionError:
                    raise
                except OSError:
                    yield _unusable(name, path, Problem("dangling link"), split, label)


def _unusable(name: str, path: Path, problem: Problem, split: str = POOL, label: str | None = None) -> Record:
    return Record(name, {path.suffix.lower(): Location(str(path), 0, 0)}, split, label, problem=problem)


def _read_tar(path: Path, name: str, unpack_to: Path) -> Iterator[Record]:
    """The images of one tar by offset. Members are never extracted, so no path in the tar can lead anywhere."""
    if name.endswith(_COMPRESSED):
        path = _unpack(path, unpack_to / f"{rng.key(name):016x}.tar")
    inside = PurePosixPath(name)
    stem = inside.parent / inside.name.split(".tar")[0].removesuffix(".tgz")
    total = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                suffix = PurePosixPath(member.name).suffix.lower()
                if not member.isfile() or suffix not in SUFFIXES:
                    continue
                split, label = _meaning(_printable(member.name))
                is_cut = member.offset_data + member.size > total
                yield Record(
                    f"{stem}/{_printable(member.name)}",
                    {suffix: Location(str(path), member.offset_data, member.size)},
                    split,
                    label,
                    problem=Problem("truncated tar") if is_cut else None,
                )
            # A damaged header ends the iteration in silence; a whole tar ends in zeros.
            if any(_bytes_at(path, archive.offset, tarfile.BLOCKSIZE)):
                yield _unusable(name, path, Problem("damaged tar", f"no header at byte {archive.offset}"))
    except tarfile.ReadError as error:
        # What came before the damage is good. The damage itself becomes a reject that names the tar.
        yield _unusable(name, path, Problem("damaged tar", str(error)))


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
