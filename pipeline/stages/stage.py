"""The contract of a stage: what it reads, what decides its result, what it needs, and how it is made.

A stage is one arrow of the round. It is a frozen dataclass of its settings; everything else about it, from the plan to the
report, follows from what it declares here.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from pydantic import TypeAdapter

from curation.base.files import write_atomic
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.runtime.config import Resources
from pipeline.runtime.executor import Executor

T = TypeVar("T")
WORK = "work"


class Opened(Protocol):
    """What an input is once it is opened: an artifact, or files of the user's own."""

    kind: ClassVar[str]

    @property
    def directory(self) -> Path: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def lineage(self) -> dict[str, str]:
        """Kinds of this and of everything it was made from, by fingerprint."""
        ...


class Opens(Protocol):
    """A class that reads one kind of input."""

    def open(self, directory: Path, /) -> Opened: ...


@dataclass(frozen=True)
class Input:
    """An input that a stage declares. It is opened, and checked, once, before the stage is made."""

    reader: Opens
    optional: bool = False
    made_into: tuple[str, ...] = ()
    """Roles of other inputs that must have been made from this one, if they were made from any of its kind."""


@dataclass(frozen=True)
class Estimate:
    """What a stage reads, writes and computes, and what later stages must know of it to estimate themselves."""

    rows: int
    """Rows that it makes, of the pool."""
    held_out: int = 0
    dim: int = 0
    """Numbers in an embedding."""
    clusters: int = 0
    """Clusters of the finest level."""
    parts: int = 1
    num_bytes: int = 0
    """Bytes that it writes."""
    flops: float = 0
    decodes: int = 0
    """Images decoded."""


@dataclass(frozen=True)
class StageOutput:
    """What a stage has made."""

    parts: Sequence[Part]
    statistics: dict[str, Any]


@dataclass(frozen=True)
class StageContext:
    """What a stage is given: where to write, its opened inputs, and who runs its functions."""

    out: Path
    inputs: Mapping[str, Any]
    """The opened inputs, by role; optional ones that were not given are missing."""
    executor: Executor
    resources: Resources = field(default_factory=Resources)

    @property
    def scratch(self) -> Path:
        """A directory for intermediate files; deleted when the stage is finished."""
        return self.out / WORK

    def directory(self, role: str) -> Path | None:
        """Where an input is; None for an optional one that was not given."""
        return self.inputs[role].directory if role in self.inputs else None

    def parts(
        self,
        function: Callable[..., list[Part]],
        items: Sequence[tuple[object, ...]],
        *args: object,
        num_rows: Sequence[int],
        label: str,
        unit: str = "images",
        on_gpu: bool = False,
    ) -> list[Part]:
        """Make the parts of each of `items` that has no record, in parallel: `function(*item, *args)`.

        `function` writes its files whole or not at all, the same bytes whenever it is called. A task is sent its own item, not
        the others. `num_rows`, one number an item, is for the progress display.
        """
        records = [self.scratch / f"{label}-{index:06d}.json" for index in range(len(items))]
        missing = [index for index, record in enumerate(records) if not record.exists()]
        calls = [(function, records[index], (*items[index], *args)) for index in missing]
        total = sum(num_rows)
        done = total - sum(num_rows[index] for index in missing)
        with self.executor.console.progress(label, total, unit, done) as meter:
            for finished in self.executor.map(_make_parts, calls, resources=self.resources, on_gpu=on_gpu):
                meter.advance(num_rows[missing[finished]])
        return [part for record in records for part in _PARTS.validate_json(record.read_bytes())]

    def call(self, function: Callable[..., T], *args: object, on_gpu: bool = False) -> T:
        """`function(*args)`, run once with a machine to itself."""
        return self.executor.call(function, *args, resources=self.resources, on_gpu=on_gpu)

    def ranks(self, function: Callable[..., Iterator[T]], num_ranks: int, *args: object) -> Iterator[T]:
        """The generator `function(*args)` on each rank of a process group; yields what rank 0 yields."""
        return self.executor.ranks(function, num_ranks, *args, resources=self.resources, on_gpu=True)


_PARTS = TypeAdapter(list[Part])


def _make_parts(function: Callable[..., list[Part]], record: Path, args: tuple[object, ...]) -> None:
    """Make parts and their record, unless an earlier attempt at the same work has."""
    if not record.exists():
        write_atomic(record, _PARTS.dump_json(function(*args)))


class Stage(ABC):
    """One arrow of the round."""

    name: ClassVar[str]
    """The verb, as users know it."""
    makes: ClassVar[type[Artifact]]
    version: ClassVar[int] = 1
    """Raised whenever equal settings and inputs give another result than before, as after a default was changed."""
    inputs: ClassVar[Mapping[str, Input]] = {}
    """What it reads, by role."""
    resources: ClassVar[Resources] = Resources()
    """What it uses at the most, unless the user says otherwise."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The settings that decide the artifact and differ from their defaults, as plain JSON values."""

    def needs(self) -> frozenset[str]:
        """Roles of optional inputs that these settings cannot do without."""
        return frozenset()

    def check(self) -> None:  # noqa: B027 - most stages have nothing to check
        """Raise ConfigError if something that the settings ask for is not installed; called before anything runs."""

    @abstractmethod
    def make(self, context: StageContext) -> StageOutput:
        """Schedule the work that makes the artifact, or what is missing of it; compute nothing here.

        May be killed at any moment and is then called again.
        """

    @abstractmethod
    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        """What the stage will read and cost, from the estimates of its inputs."""

    @abstractmethod
    def describe(self, manifest: Manifest) -> str:
        """What a finished stage has made, in a few words."""

    def measured(self, manifest: Manifest, inputs: Mapping[str, Estimate]) -> Estimate:  # noqa: ARG002
        """The estimate of a finished stage, by what it has counted."""
        return self.estimate(inputs)

    def progress(self, out: Path) -> str:
        """How far a stage that was begun in `out` is, in a few words."""
        done = len(list((out / WORK).glob("*.json"))) if (out / WORK).exists() else 0
        return f"{done} parts" if done else ""
