"""Training: an encoder, the checkpoint it ended with, and the lines that were written on the way."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from curation.base.errors import DataError
from pipeline.artifacts.artifact import Artifact, is_artifact
from pipeline.artifacts.manifest import Manifest, user_file_digest
from trainers.output_files import CHECKPOINTS, DESCRIPTION, EVALUATIONS, METRICS, WEIGHTS, newest_checkpoint


@dataclass(frozen=True)
class Training(Artifact):
    """The encoder, `checkpoints/`, `metrics.jsonl`, `evaluations.jsonl`, `encoders/` and `best`."""

    kind = "training"

    def checkpoint(self) -> Path:
        """The checkpoint that a later training may start from. Raises DataError if it was deleted."""
        newest = newest_checkpoint(self.directory / CHECKPOINTS)
        if newest is None:
            raise DataError(f"{self.directory} has no checkpoint left to start from. Train it again, or start without it.")
        return newest


@dataclass(frozen=True)
class FrozenEncoder:
    """An encoder to embed with: of a training, of embeddings that keep their own, or a directory with these two files."""

    kind: ClassVar[str] = "encoder"
    directory: Path
    fingerprint: str
    lineage: dict[str, str]

    @classmethod
    def open(cls, directory: Path) -> "FrozenEncoder":
        """Raises DataError if there is no finished encoder in `directory`."""
        if not is_artifact(directory) and (directory / DESCRIPTION).is_file():
            digests = [user_file_digest(directory / name) for name in (DESCRIPTION, WEIGHTS)]
            fingerprint = hashlib.blake2b(" ".join(digests).encode(), digest_size=12).hexdigest()
            return cls(directory, fingerprint, {fingerprint: cls.kind})
        artifact = Artifact(directory, Manifest.read(directory))
        if not {DESCRIPTION, WEIGHTS} <= {part.path for part in artifact.manifest.parts}:
            raise DataError(f"{directory} holds {artifact.manifest.kind} without an encoder. Give what `windrow train` wrote.")
        for name in (DESCRIPTION, WEIGHTS):
            artifact.path(name)
        lineage = {artifact.fingerprint: artifact.manifest.kind, **artifact.manifest.ancestors}
        return cls(directory, artifact.fingerprint, lineage)


def metrics(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines of a training's steps, also of one that is not finished."""
    return json_lines(directory / METRICS)


def evaluations(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines of a training's evaluations, also of one that is not finished."""
    return json_lines(directory / EVALUATIONS)


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON object of each whole line of a file. Raises DataError for a line that holds none."""
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise DataError(f"{path} is damaged: line {number} is not JSON ({error}). Delete that line.") from error


def whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that may be missing, or cut short by a kill."""
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as file:
            yield from (line for line in file if line.endswith("}\n"))
