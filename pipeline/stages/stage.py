"""Stages: how work becomes an artifact that survives being killed.

A stage's directory goes through three states. With `stage.json` it is begun: the file says which settings it is for. Every
part that is whole then leaves a record under `work/`. With `manifest.json` it is finished, and `work/` goes. Whatever
process dies, the next run of the same stage makes the parts that have no record.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from curation.base.errors import StaleArtifactError
from curation.base.files import remove_temporary, write_atomic
from pipeline.artifacts.manifest import BEGUN, MANIFEST, Manifest, Part, fingerprint, identity, software
from pipeline.runtime.ray_executor import Runtime

WORK = "work"


@dataclass(frozen=True)
class Made:
    """What a stage made."""

    parts: Sequence[Part]
    statistics: dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What a stage is given: where to write, what to read, and who helps."""

    out: Path
    inputs: Mapping[str, Path]
    runtime: Runtime

    @property
    def scratch(self) -> Path:
        """For intermediate files; deleted when the stage is finished."""
        return self.out / WORK

    def parts(
        self,
        function: Callable[..., Part],
        num_rows: Sequence[int],
        *args: object,
        label: str,
        unit: str = "images",
        gpu: bool = False,
    ) -> list[Part]:
        """Make part i with `function(i, *args)` for every i that has no record, in parallel.

        `function` writes its file whole or not at all, the same bytes whenever it is called. `num_rows` (one entry a part)
        is for the progress display.
        """
        records = [self.scratch / f"{label}-{index:06d}.json" for index in range(len(num_rows))]
        missing = [index for index, record in enumerate(records) if not record.exists()]
        self.runtime.map(
            _make_part,
            [(function, index, records[index], args) for index in missing],
            weights=[num_rows[index] for index in missing],
            done=sum(num_rows) - sum(num_rows[index] for index in missing),
            label=label,
            unit=unit,
            gpu=gpu,
        )
        return [Part.model_validate_json(record.read_bytes()) for record in records]


def _make_part(function: Callable[..., Part], index: int, record: Path, args: tuple[object, ...]) -> None:
    part = function(index, *args)
    write_atomic(record, part.model_dump_json())


class Stage(Protocol):
    """One arrow of the round."""

    @property
    def kind(self) -> str:
        """The kind of artifact it makes."""
        ...

    def settings(self) -> dict[str, Any]:
        """Exactly the settings that decide the artifact, as plain JSON values."""
        ...

    def make(self, work: Work) -> Made:
        """Make the artifact, or what is missing of it. May be killed at any moment and is then called again."""
        ...


@dataclass(frozen=True)
class Step:
    """A stage at its place in a run: the directory it fills and the steps it reads from."""

    name: str
    stage: Stage
    inputs: dict[str, "Step"] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.stage.kind, self.stage.settings(), self.parents)

    @property
    def parents(self) -> dict[str, str]:
        return {role: step.fingerprint for role, step in self.inputs.items()}


def run_step(step: Step, run_dir: Path, runtime: Runtime) -> Manifest:
    """Run one step of a run, unless it is finished."""
    inputs = {role: run_dir / parent.name for role, parent in step.inputs.items()}
    return run_stage(step.stage, run_dir / step.name, inputs, runtime, name=step.name, events=run_dir / "events.jsonl")


def run_stage(
    stage: Stage,
    out: Path,
    inputs: Mapping[str, Path],
    runtime: Runtime,
    *,
    name: str | None = None,
    events: Path | None = None,
) -> Manifest:
    """Bring the artifact in `out` into being: nothing if it is finished, else what is missing of it.

    Raises StaleArtifactError if `out` holds work for other settings or other inputs.
    """
    name = name or stage.kind
    parents = {role: identity(path) for role, path in inputs.items()}
    settings = stage.settings()
    wanted = fingerprint(stage.kind, settings, parents)
    if difference := stale(out, wanted, settings, parents):
        raise StaleArtifactError(f"{out} was made differently: {difference}. {HOW_TO_REDO}")
    if (out / MANIFEST).exists():
        shutil.rmtree(out / WORK, ignore_errors=True)
        runtime.console.say(f"{name}: finished already")
        return Manifest.read(out)

    out.mkdir(parents=True, exist_ok=True)
    remove_temporary(out)
    begun = {"kind": stage.kind, "fingerprint": wanted, "settings": settings, "parents": parents}
    write_atomic(out / BEGUN, json.dumps(begun, indent=1) + "\n")
    started = time.time()
    with runtime.console.stage(name):
        made = stage.make(Work(out, inputs, runtime))
    manifest = Manifest(
        kind=stage.kind,
        fingerprint=wanted,
        settings=settings,
        parents=parents,
        parts=tuple(made.parts),
        statistics=made.statistics,
        provenance=software(),
    )
    manifest.write(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    if events is not None:
        with events.open("a") as file:
            event = {"stage": name, "finished": time.time(), "seconds": round(time.time() - started, 2)}
            file.write(json.dumps(event) + "\n")
    return manifest


HOW_TO_REDO = "Use another directory, or (with `windrow run`) pass --redo to set the old work aside and make it again"


def stale(out: Path, wanted: str, settings: dict[str, Any], parents: dict[str, str]) -> str | None:
    """How the work in `out` differs from what is wanted, in words; None if it does not or if there is none."""
    try:
        found = json.loads((out / BEGUN).read_bytes())
    except FileNotFoundError:
        return None
    if found["fingerprint"] == wanted:
        return None
    changes = [f"{path} was {_shown(old)}, now {_shown(new)}" for path, old, new in _changes("", found["settings"], settings)]
    changes += [f"its {role} changed" for role in parents if found["parents"].get(role) != parents[role]]
    return "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "") or "its format"


_DEFAULT = object()
"""In place of a setting that is not listed: only what differs from the defaults is."""


def _shown(value: object) -> str:
    return "the default" if value is _DEFAULT else json.dumps(value)


def _changes(path: str, old: object, new: object) -> list[tuple[str, object, object]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            c for key in keys for c in _changes(f"{path}.{key}".lstrip("."), old.get(key, _DEFAULT), new.get(key, _DEFAULT))
        ]
    return [] if old == new else [(path, old, new)]


def set_aside(out: Path, run_dir: Path) -> Path:
    """Move a stage's directory out of the way, under the run's `superseded/`."""
    number = 1
    while (target := run_dir / "superseded" / f"{out.relative_to(run_dir)}.{number}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    out.rename(target)
    return target
