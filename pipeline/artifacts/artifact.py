"""An artifact: a directory of parts with a manifest, opened as the noun it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from curation.base.errors import DataError
from pipeline.artifacts.manifest import BEGUN, MANIFEST, Manifest, Part, user_file_digest


@dataclass(frozen=True)
class Artifact:
    """The base of all readers: what is in a directory, and whether it is what it should be."""

    kind: ClassVar[str]
    layout: ClassVar[int] = 1
    """Version of the files; a reader refuses those of another."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> Self:
        """The finished artifact in `directory`.

        Raises DataError if it is none, of another kind or layout, or has lost parts.
        """
        manifest = Manifest.read(directory)
        if manifest.kind != cls.kind:
            raise DataError(f"{directory} holds {manifest.kind}; {cls.kind} is needed here.")
        if manifest.layout != cls.layout:
            raise DataError(
                f"{directory} holds {cls.kind} in layout {manifest.layout}; this version of windrow reads layout {cls.layout}. "
                "Run the stage that makes it again."
            )
        artifact = cls(directory, manifest)
        artifact.check_parts()
        return artifact

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    @property
    def lineage(self) -> dict[str, str]:
        """The kinds of this artifact and of everything it was made from, by fingerprint."""
        return {self.fingerprint: self.kind, **self.manifest.ancestors}

    @property
    def statistics(self) -> dict[str, Any]:
        return self.manifest.statistics

    def parts(self, suffix: str = "") -> list[Part]:
        """The parts whose paths end in `suffix`."""
        return [part for part in self.manifest.parts if part.path.endswith(suffix)]

    def path(self, name: str) -> Path:
        """The path of a part, after its bytes were compared with their digest. Raises DataError if they differ."""
        part = next((part for part in self.manifest.parts if part.path == name), None)
        if part is None:
            raise DataError(f"{self.directory} has no {name}. Run the stage that makes it again.")
        return verified(self.directory, part)

    def check_parts(self) -> None:
        """Raise DataError if a part is missing or has another size than when it was made."""
        for part in self.manifest.parts:
            try:
                num_bytes = (self.directory / part.path).stat().st_size
            except OSError as error:
                raise _damaged(self.directory, part, f"it cannot be read ({error.strerror})") from error
            if num_bytes != part.num_bytes:
                raise _damaged(self.directory, part, f"it has {num_bytes:,} bytes where {part.num_bytes:,} were written")


def verified(directory: Path, part: Part) -> Path:
    """The path of `part`, after its bytes were compared with their digest; once in a process while the file stays."""
    path = directory / part.path
    if user_file_digest(path) != part.digest:
        raise _damaged(directory, part, "its bytes are not those that were written")
    return path


def _damaged(directory: Path, part: Part, how: str) -> DataError:
    return DataError(
        f"{directory / part.path} is damaged: {how}. Restore it, or delete {directory} and run the same command again, "
        "which makes it anew."
    )


def is_artifact(path: Path) -> bool:
    """Whether a stage of ours wrote this directory, or began to."""
    return (path / MANIFEST).exists() or (path / BEGUN).exists()
