"""Checkpoints: whole, few, and readable without trusting them."""

import pickle
import sys
from pathlib import Path
from typing import Any

import torch

from curation.errors import DataError
from curation.files import atomic_path

_KEPT = 2


def save(directory: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` as the checkpoint of `step`, then delete all but the newest two."""
    with atomic_path(directory / f"step-{step:08d}.pt") as temporary, temporary.open("wb") as file:
        torch.save(_canonical(state), file)
    for old in _all(directory)[:-_KEPT]:
        old.unlink()


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read one checkpoint. Tensors and plain containers only: a checkpoint from a stranger can run no code."""
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise DataError(
            f"The checkpoint {path} cannot be read: {error} Delete it to continue from the one before it."
        ) from error
    assert isinstance(state, dict)
    return state


def newest(directory: Path, device: torch.device) -> dict[str, Any] | None:
    """The state of the newest checkpoint in `directory`, or None."""
    paths = _all(directory)
    return load(paths[-1], device) if paths else None


def newest_path(directory: Path) -> Path | None:
    """Where the newest checkpoint in `directory` is, or None."""
    return next(iter(_all(directory)[::-1]), None)


def _canonical(value: Any) -> Any:
    """An equal value whose bytes, once saved, depend on nothing but the value.

    A saved file refers back to objects it has already seen, so sharing, which differs between a fresh and a resumed
    process, would show.
    """
    if isinstance(value, dict):
        return {_canonical(key): _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([_canonical(item) for item in value])
    return sys.intern(value) if isinstance(value, str) else value


def _all(directory: Path) -> list[Path]:
    return sorted(directory.glob("step-*.pt"))
