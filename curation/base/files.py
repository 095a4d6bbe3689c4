"""Writing of files that are either whole or absent."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from curation.base.errors import DataError

_TEMPORARY = ".tmp-"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends well, sync it and rename it to `path`.

    A kill at any moment leaves either the old file, the new one, or a temporary file that `remove_temporary` clears.
    Two processes may write the same path at once: the temporary names differ and the last rename wins.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_TEMPORARY}{secrets.token_hex(6)}-{path.name}"
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def explained(what: str, directory: Path) -> Iterator[None]:
    """Turn an OSError in the block, for example of a full disk, into a DataError that names `what` and says what to do."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{what} could not be written to {directory}: {error}. Earlier files there are undamaged. Make room there and run "
            "the same command again."
        ) from error


def save_array(path: Path, array: np.ndarray) -> None:
    """Write `array` to the .npy file `path`, whole or not at all."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def remove_temporary(directory: Path) -> None:
    """Delete the temporary files of killed writers. Only the holder of the run's lock may call this."""
    for path in directory.rglob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)
