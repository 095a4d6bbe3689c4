"""Directories of .npy files that are written once and mapped read-only by all processes of a machine."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from curation.base.files import explained


def write_once(directory: Path, write: Callable[[Path], None]) -> None:
    """Make `directory` by `write(temporary directory)`, unless it is there already.

    The directory appears whole or not at all, whenever a process is killed. Processes that ask at the same time wait for the
    one that writes. Raises DataError if it cannot be written.
    """
    if directory.exists():
        return
    prefix = f".{directory.name}.tmp-"
    with explained("The arrays that the ranks of a machine share", directory.parent):
        directory.parent.mkdir(parents=True, exist_ok=True)
        with (directory.parent / f".{directory.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the system releases it if this process dies
            if directory.exists():
                return
            for leftover in directory.parent.glob(f"{prefix}*"):  # of a process that was killed: it held the lock
                shutil.rmtree(leftover)
            temporary = directory.parent / f"{prefix}{secrets.token_hex(6)}"
            temporary.mkdir()
            try:
                write(temporary)
                for path in [*temporary.iterdir(), temporary]:
                    _sync(path)
                temporary.rename(directory)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            _sync(directory.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_arrays(directory: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write each array to a .npy file of its name in `directory`."""
    for name, array in arrays.items():
        np.save(directory / f"{name}.npy", array, allow_pickle=False)


def map_arrays(directory: Path) -> dict[str, np.ndarray]:
    """The arrays of the .npy files in `directory`, by name, mapped read-only."""
    maps = {path.stem: np.load(path, mmap_mode="r", allow_pickle=False) for path in sorted(directory.glob("*.npy"))}
    return {name: array.view(np.ndarray) for name, array in maps.items()}
