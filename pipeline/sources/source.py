"""The contract of a source: what raw samples there are, partition by partition, and where their bytes are."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Protocol

from curation.base.config import Config
from pipeline.modalities.modality import Problem
from pipeline.storage.location import Location

SOURCES = {"images": "pipeline.sources.folder:Folder", "digits": "pipeline.sources.digits:Digits"}
"""The module and class of each kind of source, by the `type` of its settings."""


@dataclass(frozen=True, slots=True)
class Record:
    """One raw sample of a source."""

    key: str
    """The name of the sample inside the source, such as a path; unique."""
    members: Mapping[str, Location | bytes]
    """Its files by suffix, such as `.jpg` or `.txt`: where the bytes are, or the bytes. The first one is decoded."""
    split: str
    label: str | None = None
    known: Mapping[str, str] = field(default_factory=dict)
    """What else the source says of it: a licence, an attribution, a time."""
    problem: Problem | None = None
    """Why it cannot be used, if that is known without its bytes."""


class Source(Protocol):
    """Where raw samples come from. Instances travel to the processes that list them.

    A source is made from its settings and `SOURCES` names it; nothing else in the program does.
    """

    modality: ClassVar[str]
    """The name of the modality of its samples."""
    long_tail: float
    """Thin the labelled samples of the pool out by Zipf's law; 1 keeps all."""

    def partitions(self) -> list[str]:
        """Names of the parts that the source is listed in, in parallel. Raises DataError if there is nothing to list."""
        ...

    def records(self, partition: str, scratch: Path) -> Iterator[Record]:
        """The samples of one partition, one after another, in any order; the same in any process.

        What must be unpacked to be read is unpacked into `scratch`, a directory that stays until the samples are written.
        """
        ...

    def describe_empty(self) -> str:
        """What to tell the user of a source without samples."""
        ...

    def size(self) -> tuple[int, int, int]:
        """Samples of the pool, other samples, and bytes, for a plan: counted without reading them."""
        ...


def open_source(config: Config) -> Source:
    """The source that these settings describe."""
    module, _, name = SOURCES[config.type].partition(":")  # type: ignore[attr-defined]
    source: Source = getattr(import_module(module), name)(config)
    return source


def settings_of(config: Any) -> dict[str, Any]:
    """The settings of a source that decide its samples, as plain JSON values."""
    fields: dict[str, Any] = config.fingerprint_fields()
    return {"type": config.type, **fields}
