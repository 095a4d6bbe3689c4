"""One writer per directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curation.base.errors import ConfigError, UserError


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold `directory` for this process; the system lets go of it when the process dies, however it dies."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(f"{directory} cannot be written: {error.strerror}. Choose another directory.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another windrow process is at work in {directory}. Wait for it to end, or end it first."
            ) from None
        yield
    finally:
        os.close(descriptor)
