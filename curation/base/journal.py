"""Intermediate results on disk, so that a killed computation continues where it was."""

import io
import time
from pathlib import Path

import numpy as np

from curation.base.collectives import Alone, Collectives
from curation.base.files import write_atomic


class Journal:
    """Arrays saved under names: worker 0 writes, every worker reads the same.

    Without a directory nothing is saved and nothing is found. Writing more often than every `seconds` would cost more than
    it saves, so a `save` sooner than that after the last one does nothing.
    """

    def __init__(self, directory: Path | None = None, collectives: Collectives | None = None, seconds: float = 10.0) -> None:
        self._directory = directory
        self._workers = collectives or Alone()
        self._seconds = seconds
        self._last = time.monotonic()

    def inner(self, name: str) -> "Journal":
        """A journal of its own for one part of the work."""
        return Journal(self._directory and self._directory / name, self._workers, self._seconds)

    def save(self, name: str, **arrays: np.ndarray) -> None:
        """Keep `arrays` under `name`, in place of what was there, if it is time."""
        due = time.monotonic() - self._last >= self._seconds
        if due and self._directory is not None and self._workers.rank == 0:
            self._last = time.monotonic()
            content = io.BytesIO()
            np.savez(content, **arrays)  # type: ignore[arg-type]
            write_atomic(self._directory / f"{name}.npz", content.getvalue())

    def load(self, name: str) -> dict[str, np.ndarray] | None:
        """What was saved under `name`, or None. Every worker must ask."""
        if self._directory is None:
            return None
        path = self._directory / f"{name}.npz"
        content = b""
        if self._workers.rank == 0 and path.exists():
            content = path.read_bytes()
        # Only one worker reads: another could see a newer state, or none yet.
        content = self._workers.gather(np.frombuffer(content, dtype=np.uint8))[0].tobytes()
        if not content:
            return None
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
