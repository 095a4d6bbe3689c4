"""Files that the user brought: how they are known, and how they are read."""

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from curation.base.errors import DataError


def files_fingerprint(path: Path, suffixes: Collection[str]) -> str:
    """The identity of a file, or of the files in a directory that end in one of `suffixes`: names, sizes and times.

    Raises DataError if there is none.
    """
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() else []
    states = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.suffix in suffixes]
    if not states:
        state = "has none of these" if path.exists() else "does not exist"
        raise DataError(f"{path} {state}. Expected what a stage of windrow wrote, or files ending in {', '.join(suffixes)}.")
    return hashlib.blake2b(json.dumps(states).encode(), digest_size=12).hexdigest()


@dataclass(frozen=True)
class Scores:
    """A number for each row, from a .npy file of the user's own."""

    kind: ClassVar[str] = "scores"

    directory: Path
    fingerprint: str

    @classmethod
    def open(cls, path: Path, /) -> "Scores":
        return cls(path, files_fingerprint(path, (".npy",)))

    @property
    def lineage(self) -> dict[str, str]:
        return {self.fingerprint: self.kind}

    def read(self, num_rows: int) -> np.ndarray:
        """(N,) finite numbers, one for each of `num_rows` rows. Raises DataError if the file holds something else."""
        path = self.directory
        try:
            scores = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as scores: {error}. Expected a .npy array of one number a row.") from error
        if scores.shape != (num_rows,) or scores.dtype.kind not in "fiu" or not np.isfinite(scores).all():
            raise DataError(f"{path} must hold {num_rows:,} finite numbers; found {scores.dtype} of shape {scores.shape}.")
        return scores
