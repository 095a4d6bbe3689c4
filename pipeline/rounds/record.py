"""What a run's directory says about itself: for the report, the plan and the status."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from curation.base.errors import DataError, UserError
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import BEGUN, MANIFEST, Manifest
from pipeline.artifacts.training import json_lines
from pipeline.config import RunConfig
from pipeline.rounds.graph import Step, steps
from pipeline.rounds.run import EVENTS, stale

A = TypeVar("A", bound=Artifact)


@dataclass(frozen=True)
class StepRecord:
    """What is known of one step of a run."""

    name: str
    kind: str
    """Kind of the artifact that it makes."""
    round: int | None
    is_begun: bool
    manifest: Manifest | None
    """The manifest of a finished step."""
    seconds: float | None
    step: Step | None
    """The step, where the configuration can be read."""

    @property
    def state(self) -> str:
        """finished, begun (and how far), made differently, or to do."""
        return "finished" if self.manifest else "begun" if self.is_begun else "to do"

    @property
    def num_bytes(self) -> int | None:
        return sum(part.num_bytes for part in self.manifest.parts) if self.manifest else None

    @property
    def description(self) -> str:
        """What a finished step has made, in a few words."""
        return self.step.stage.describe(self.manifest) if self.step and self.manifest else ""

    def state_in(self, run_dir: Path) -> str:
        """As `state`, compared with what is asked for."""
        out = run_dir / self.name
        if self.step and stale(out, self.step.fingerprint, self.step.settings, self.step.parents):
            return "made differently"
        if self.state == "begun" and self.step and (progress := self.step.stage.progress(out)):
            return f"begun, {progress}"
        return self.state


@dataclass(frozen=True)
class RunRecord:
    """What a run's directory says about itself."""

    directory: Path
    config: RunConfig | None
    config_text: str
    steps: tuple[StepRecord, ...]
    invocations: list[dict[str, Any]]
    notes: list[str]
    """What could not be read."""

    @classmethod
    def read(cls, directory: Path, config: RunConfig | None = None) -> "RunRecord":
        """The record in a run's directory, by its own configuration or by one that is given."""
        notes: list[str] = []
        path = directory / "config.yaml"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        graph: list[Step] = []
        try:
            config = config or RunConfig.model_validate(yaml.safe_load(text))
            graph = steps(config)
        except (yaml.YAMLError, ValidationError, UserError):
            notes.append("config.yaml cannot be read by this version; the stages shown are those that were begun.")
        seconds: dict[str, float] = {}
        try:
            seconds |= {event["stage"]: float(event["seconds"]) for event in json_lines(directory / EVENTS)}
        except DataError as error:  # then no stage has a time
            notes.append(str(error))
        by_name: dict[str, Step | None] = {step.name: step for step in graph} or dict.fromkeys(_begun(directory))
        records = [_record(directory, name, step, seconds.get(name), notes) for name, step in by_name.items()]
        try:
            invocations = [
                entry for entry in json.loads((directory / "provenance.json").read_text()) if isinstance(entry, dict)
            ]
        except (OSError, ValueError):  # a page without it is better than none
            invocations = []
        return cls(directory, config, text, tuple(records), invocations, notes)

    def finished(self, noun: type[A]) -> dict[int | None, A]:
        """The finished artifacts of one kind by round, in order; None for one outside of rounds.

        Those of another layout are left out; the others are not checked again.
        """
        return {
            record.round: noun(self.directory / record.name, record.manifest)
            for record in self.steps
            if record.manifest and record.kind == noun.kind and record.manifest.layout == noun.layout
        }

    def by_round(self, noun: type[A]) -> dict[int, A]:
        """The finished artifacts of one kind inside of rounds, by round."""
        return {number: artifact for number, artifact in self.finished(noun).items() if number is not None}

    def directories(self, noun: type[Artifact]) -> dict[int, Path]:
        """Where the artifacts of one kind are, by round; also those that are not finished."""
        records = [record for record in self.steps if record.kind == noun.kind and record.round is not None]
        return {record.round: self.directory / record.name for record in records if record.round is not None}


def _begun(directory: Path) -> list[str]:
    """The names of the steps that were begun in a run's directory."""
    depths = (f"*/{BEGUN}", f"*/*/{BEGUN}")
    return [path.parent.relative_to(directory).as_posix() for depth in depths for path in sorted(directory.glob(depth))]


def _record(directory: Path, name: str, step: Step | None, seconds: float | None, notes: list[str]) -> StepRecord:
    out = directory / name
    begun: Mapping[str, Any] = {}
    manifest = None
    with suppress(OSError, ValueError):
        begun = json.loads((out / BEGUN).read_bytes())
    try:
        manifest = Manifest.read(out) if (out / MANIFEST).exists() else None
    except UserError as error:
        notes.append(str(error))
    kind = step.stage.makes.kind if step else manifest.kind if manifest else str(begun.get("kind", ""))
    number = step.round if step else begun.get("round")
    return StepRecord(name, kind, number, bool(begun), manifest, seconds, step)
