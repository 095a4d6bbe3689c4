"""Artifacts: a directory of parts that is complete when its manifest is there."""

import hashlib
import json
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from curation.base.errors import DataError
from curation.base.files import write_atomic
from curation.embeddings.files import SUFFIXES
from trainers.output_files import DESCRIPTION, WEIGHTS

SCHEMA_VERSION = 2
MANIFEST, BEGUN = "manifest.json", "stage.json"
DUPLICATES = "duplicates.parquet"
"""Of a deduplication: which row goes for which, and why."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Part(_Record):
    """One file of an artifact."""

    path: str
    """Relative to the artifact's directory."""
    num_rows: int
    num_bytes: int
    digest: str
    """blake2b-128 of the bytes."""

    @classmethod
    def of(cls, directory: Path, path: str, num_rows: int) -> "Part":
        """Describe a file that has been written."""
        num_bytes = (directory / path).stat().st_size
        return cls(path=path, num_rows=num_rows, num_bytes=num_bytes, digest=_digest(directory / path))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


class Manifest(_Record):
    """What an artifact is and what it was made from. Written last; equal for equal work, so it holds no times."""

    kind: str
    schema_version: int = SCHEMA_VERSION
    fingerprint: str
    """Of the kind, the schema version, the settings and the parents' fingerprints."""
    settings: dict[str, Any]
    """Exactly the settings that decide the content."""
    parents: dict[str, str]
    """Fingerprints of the artifacts it was made from, by role."""
    parts: tuple[Part, ...] = ()
    statistics: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    """Versions of the software that made it."""

    def write(self, directory: Path) -> None:
        write_atomic(directory / MANIFEST, json.dumps(self.model_dump(mode="json"), indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Raises DataError if the artifact is missing, unfinished, not ours or of another version."""
        path = directory / MANIFEST
        try:
            found = cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            state = "is not finished: it has no manifest.json" if directory.is_dir() else "does not exist"
            raise DataError(f"{directory} {state}. Run the stage that makes it first.") from None
        except (ValidationError, OSError) as error:
            raise DataError(f"{path} is not a manifest of this program: {error}") from error
        if found.schema_version != SCHEMA_VERSION:
            raise DataError(
                f"{directory} is in format {found.schema_version} of artifacts, this version of windrow in {SCHEMA_VERSION}. "
                "Run the stage that makes it again."
            )
        return found


def read_kind(directory: Path, *kinds: str) -> Manifest:
    """The manifest in `directory`, which must be of one of `kinds`."""
    manifest = Manifest.read(directory)
    if manifest.kind not in kinds:
        raise DataError(f"{directory} holds {manifest.kind}; {' or '.join(kinds)} is needed here.")
    return manifest


def is_artifact(path: Path) -> bool:
    """Whether a stage of ours wrote this directory, or began to."""
    return (path / MANIFEST).exists() or (path / BEGUN).exists()


def identity(path: Path) -> str:
    """The fingerprint of an artifact; of an encoder outside of any its content; of other files names, sizes and times."""
    if not is_artifact(path) and (path / DESCRIPTION).is_file():
        return " ".join(content(path / name) for name in (DESCRIPTION, WEIGHTS))
    files = [path] if path.is_file() else sorted(path.iterdir()) if path.is_dir() and not is_artifact(path) else []
    found = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.suffix in SUFFIXES]
    if not found:
        return Manifest.read(path).fingerprint
    return hashlib.blake2b(json.dumps(found).encode(), digest_size=12).hexdigest()


def by_content(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with a digest in place of the path that their encoder's weights lie at: a copy elsewhere is the same weights."""
    encoder = settings["encoder"]
    if not encoder.get("weights"):
        return settings
    return settings | {"encoder": encoder | {"weights": content(Path(encoder["weights"]))}}


def content(path: Path) -> str:
    """The digest of a file of the user's own. Raises DataError if it cannot be read."""
    try:
        state = path.stat()
        return _remembered(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Correct the path, or restore the file.") from error


@lru_cache(maxsize=16)
def _remembered(path: Path, _size: int, _modified: int) -> str:
    """Fingerprints are asked for many times, and weights are gigabytes."""
    return _digest(path)


def fingerprint(kind: str, settings: dict[str, Any], parents: dict[str, str]) -> str:
    """The identity of an artifact: equal if and only if it was asked for in the same way."""
    text = json.dumps([kind, SCHEMA_VERSION, settings, parents], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@cache
def software() -> dict[str, str]:
    """Versions that may change a result in its last bits."""
    return {name: version(name) for name in ("windrow", "numpy", "pyarrow", "torch", "timm")}
