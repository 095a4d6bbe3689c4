"""The manifest: the file that makes a directory of parts an artifact."""

import hashlib
import json
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from curation.base.errors import DataError
from curation.base.files import write_atomic

MANIFEST, BEGUN = "manifest.json", "stage.json"
FORMAT = 3
"""Version of the manifest file itself."""


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
    split: str | None = None
    """The split that all rows of the part belong to, where parts have one."""
    row_ids: tuple[int, int] | None = None
    """First and last row id, where the rows of the part have ascending ids."""

    @classmethod
    def describe(
        cls, directory: Path, path: str, num_rows: int, *, split: str | None = None, row_ids: tuple[int, int] | None = None
    ) -> "Part":
        """The record of a file that has been written."""
        num_bytes = (directory / path).stat().st_size
        digest = file_digest(directory / path)
        return cls(path=path, num_rows=num_rows, num_bytes=num_bytes, digest=digest, split=split, row_ids=row_ids)


class Manifest(_Record):
    """What an artifact is and what it was made from. Written last; equal for equal work, so it holds no times."""

    format: int = FORMAT
    kind: str
    layout: int
    """Version of the files of this kind."""
    version: int
    """Version of the stage that made it: another one makes other content from equal settings."""
    fingerprint: str
    settings: dict[str, Any]
    """The settings that decide the content and differ from their defaults."""
    parents: dict[str, str]
    """Fingerprints of the inputs it was made from, by role."""
    ancestors: dict[str, str]
    """Kinds of everything it was made from, directly or not, by fingerprint."""
    parts: tuple[Part, ...] = ()
    statistics: dict[str, Any] = {}
    provenance: dict[str, str] = {}
    """Versions of the software that made it."""

    def write(self, directory: Path) -> None:
        write_atomic(directory / MANIFEST, json.dumps(self.model_dump(mode="json", exclude_defaults=True), indent=1) + "\n")

    @classmethod
    def read(cls, directory: Path) -> "Manifest":
        """Raises DataError if the artifact is missing, unfinished, not ours or of another format."""
        path = directory / MANIFEST
        try:
            text = path.read_bytes()
            content = json.loads(text)
        except FileNotFoundError:
            state = "is not finished: it has no manifest.json" if directory.is_dir() else "does not exist"
            raise DataError(f"{directory} {state}. Run the stage that makes it first.") from None
        except (ValueError, OSError) as error:
            raise DataError(f"{path} is not a manifest of this program: {error}") from error
        if isinstance(content, dict) and (content.get("format", FORMAT) != FORMAT or "schema_version" in content):
            raise DataError(
                f"{directory} was made by another version of windrow, whose artifacts this version cannot read. "
                "Run the stage that makes it again."
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise DataError(f"{path} is not a manifest of this program: {error}") from error


def fingerprint(kind: str, layout: int, version: int, settings: dict[str, Any], parents: dict[str, str]) -> str:
    """The identity of an artifact: equal if and only if it was asked for in the same way."""
    text = json.dumps([kind, layout, version, settings, parents], sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def file_digest(path: Path) -> str:
    """blake2b-128 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def user_file_digest(path: Path) -> str:
    """The digest of a file of the user's own, remembered while the file stays. Raises DataError if it cannot be read."""
    try:
        state = path.stat()
        return _remembered_digest(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Correct the path, or restore the file.") from error


@lru_cache(maxsize=64)
def _remembered_digest(path: Path, _size: int, _modified: int) -> str:
    """Fingerprints are asked for many times, and weights are gigabytes."""
    return file_digest(path)


@cache
def software() -> dict[str, str]:
    """Versions that may change a result in its last bits."""
    return {name: version(name) for name in ("windrow", "numpy", "pyarrow", "torch", "timm")}
