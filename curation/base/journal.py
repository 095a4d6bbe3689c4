"""Intermediate results on disk, from which a killed computation continues."""

import io
import time
from pathlib import Path

import numpy as np

from curation.base.collectives import Alone, Collectives
from curation.base.files import write_atomic


class Journal:
    """Arrays saved under names: worker 0 writes them, and all workers load the same ones.

    Without a directory nothing is saved and nothing is loaded. Writing more often than every `seconds` would cost more than
    it saves, so a `save` sooner than that after the last one does nothing.
    """

    def __init__(self, directory: Path | None = None, collectives: Collectives | None = None, seconds: float = 10.0) -> None:
        self._directory = directory
        self._workers = collectives or Alone()
        self._seconds = seconds
        self._last = time.monotonic()

    def inner(self, name: str) -> "Journal":
        """A separate journal for one part of the work, in the subdirectory `name`."""
        return Journal(self._directory and self._directory / name, self._workers, self._seconds)

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Save `arrays` under `name`, in place of earlier ones, if the last save is long enough ago."""
        due = time.monotonic() - self._last >= self._seconds
        if due and self._directory is not None and self._workers.rank == 0:
            self._last = time.monotonic()
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]
            write_atomic(self._directory / f"{name}.npz", content.getvalue())

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """The arrays last saved under `name`, or None. All workers must call it together."""
        if self._directory is None:
            return None
        path = self._directory / f"{name}.npz"
        # Only worker 0 reads: another could find a newer file, or none yet.
        content = None
        if self._workers.rank == 0:
            content = np.frombuffer(path.read_bytes() if path.exists() else b"", dtype=np.uint8)
        content = self._workers.broadcast(content, 0)
        if len(content) == 0:
            return None
        with np.load(io.BytesIO(content.tobytes()), allow_pickle=False) as arrays:
            return dict(arrays)
