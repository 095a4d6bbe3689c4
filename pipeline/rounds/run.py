"""Running stages: how work becomes an artifact that survives being killed.

A stage's directory goes through three states. With `stage.json` it is begun: the file says what it is for. Every part that is
whole then leaves a record under `work/`. With `manifest.json` it is finished, and `work/` goes. Whatever process dies, the next
run of the same stage makes the parts that have no record.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from curation.base.errors import ConfigError, DataError
from curation.base.files import remove_temporary, write_atomic
from pipeline.artifacts.manifest import BEGUN, MANIFEST, Manifest, fingerprint, software
from pipeline.errors import StaleArtifactError
from pipeline.rounds.graph import Step
from pipeline.runtime.config import Resources
from pipeline.runtime.executor import Executor
from pipeline.stages.stage import WORK, Opened, Stage, StageContext

HOW_TO_REDO = "Use another directory, or (with `windrow run`) pass --redo to set the old work aside and make it again"
EVENTS = "events.jsonl"


def run_steps(
    steps: Sequence[Step], run_dir: Path, executor: Executor, *, redo: bool, begin: Callable[[], object] = lambda: None
) -> None:
    """Run what is missing of a run. With `redo`, work for other settings is set aside instead of refused.

    `begin` is called once nothing speaks against the run any more.
    """
    for step in steps:
        step.stage.check()
    _refuse_or_supersede(steps, run_dir, executor, redo=redo)
    begin()
    for step in steps:
        inputs = {role: run_dir / parent.name for role, parent in step.inputs.items()}
        run_stage(
            step.stage,
            run_dir / step.name,
            inputs,
            executor,
            resources=step.resources,
            name=step.name,
            events=run_dir / EVENTS,
            round_number=step.round,
        )


def run_stage(
    stage: Stage,
    out: Path,
    inputs: Mapping[str, Path],
    executor: Executor,
    *,
    resources: Resources | None = None,
    name: str | None = None,
    events: Path | None = None,
    round_number: int | None = None,
) -> Manifest:
    """Bring the artifact in `out` into being: nothing if it is finished, else what is missing of it.

    Raises StaleArtifactError if `out` holds work for other settings or inputs, DataError if inputs do not belong together.
    """
    name = name or stage.name
    opened = open_inputs(stage, inputs)
    parents = {role: artifact.fingerprint for role, artifact in opened.items()}
    settings = stage.settings()
    kind, layout = stage.makes.kind, stage.makes.layout
    identity = fingerprint(kind, layout, stage.version, settings, parents)
    if difference := stale(out, identity, settings, parents):
        raise StaleArtifactError(f"{out} was made differently: {difference}. {HOW_TO_REDO}")
    if (out / MANIFEST).exists():
        shutil.rmtree(out / WORK, ignore_errors=True)
        executor.console.say(f"{name}: finished already")
        return stage.makes.open(out).manifest

    out.mkdir(parents=True, exist_ok=True)
    remove_temporary(out)
    begun = {"kind": kind, "fingerprint": identity, "settings": settings, "parents": parents, "round": round_number}
    write_atomic(out / BEGUN, json.dumps(begun, indent=1) + "\n")
    started = time.time()
    with executor.console.stage(name):
        output = stage.make(StageContext(out, opened, executor, resources or stage.resources))
    ancestors = {ancestor: kind for artifact in opened.values() for ancestor, kind in artifact.lineage.items()}
    manifest = Manifest(
        kind=kind,
        layout=layout,
        version=stage.version,
        fingerprint=identity,
        settings=settings,
        parents=parents,
        ancestors=dict(sorted(ancestors.items())),
        parts=tuple(output.parts),
        statistics=output.statistics,
        provenance=software(),
    )
    manifest.write(out)
    shutil.rmtree(out / WORK, ignore_errors=True)
    if events is not None:
        with events.open("a") as file:
            event = {"stage": name, "finished": time.time(), "seconds": round(time.time() - started, 2)}
            file.write(json.dumps(event) + "\n")
    return manifest


def open_inputs(stage: Stage, paths: Mapping[str, Path]) -> dict[str, Opened]:
    """The inputs of a stage, opened as what it declares, and checked to belong together.

    Raises DataError for an input of another kind, or one that another input was not made from.
    """
    required = {role for role, declared in stage.inputs.items() if not declared.optional} | (stage.needs() & set(stage.inputs))
    if missing := sorted(required - set(paths)):
        options = ", ".join(f"--{role.replace('_', '-')}" for role in missing)
        raise ConfigError(
            f"{stage.name} with these settings needs {' and '.join(missing)}, which a run gives it. Alone, give {options}, "
            "or change the setting that asks for it."
        )
    if unknown := sorted(set(paths) - set(stage.inputs)):
        raise ConfigError(f"{stage.name} does not read {', '.join(unknown)}; it reads {', '.join(stage.inputs)}.")
    opened = {role: stage.inputs[role].reader.open(path) for role, path in paths.items()}
    for role, artifact in opened.items():
        for product_role in stage.inputs[role].made_into:
            product = opened.get(product_role)
            if product is None:
                continue
            expected = {identity for identity, kind in product.lineage.items() if kind == artifact.kind}
            if expected and artifact.fingerprint not in expected:
                raise DataError(
                    f"{product.directory} was not made from {artifact.directory}, but from other {artifact.kind} (fingerprint "
                    f"{', '.join(sorted(expected))}, not {artifact.fingerprint}). Give those, or make {product.kind} again."
                )
    return opened


def stale(out: Path, identity: str, settings: Mapping[str, Any], parents: Mapping[str, str]) -> str | None:
    """How the work in `out` differs from what is asked for, in words; None if it does not or if there is none."""
    try:
        begun = json.loads((out / BEGUN).read_bytes())
    except FileNotFoundError:
        return None
    if begun["fingerprint"] == identity:
        return None
    changes = [f"{path} was {old}, now {new}" for path, old, new in _changes("", begun["settings"], settings)]
    changes += [f"its {role} changed" for role in parents if begun["parents"].get(role) != parents[role]]
    more = f"; and {len(changes) - 4} more" if len(changes) > 4 else ""
    return "; ".join(changes[:4]) + more or "by another version of windrow"


def _changes(path: str, old: object, new: object) -> list[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        values = [(key, old.get(key, _DEFAULT), new.get(key, _DEFAULT)) for key in (old | new)]
        return [change for key, *pair in values for change in _changes(f"{path}.{key}".lstrip("."), *pair)]
    return [] if old == new else [(path, _shown(old), _shown(new))]


_DEFAULT = object()


def _shown(value: object) -> str:
    return "the default" if value is _DEFAULT else json.dumps(value)


def set_aside(out: Path, run_dir: Path) -> Path:
    """Move a stage's directory out of the way, under the run's `superseded/`."""
    number = 1
    while (target := run_dir / "superseded" / f"{out.relative_to(run_dir)}.{number}").exists():
        number += 1
    target.parent.mkdir(parents=True, exist_ok=True)
    out.rename(target)
    return target


def _refuse_or_supersede(steps: Sequence[Step], run_dir: Path, executor: Executor, *, redo: bool) -> None:
    """Raise StaleArtifactError for work that was made differently; with `redo`, set it aside."""
    differences = {
        step.name: difference
        for step in steps
        if (difference := stale(run_dir / step.name, step.fingerprint, step.settings, step.parents))
    }
    if differences and not redo:
        name, difference = next(iter(differences.items()))
        others = f" ({len(differences) - 1} later stages with it)" if len(differences) > 1 else ""
        raise StaleArtifactError(f"{run_dir} holds {name} made differently{others}: {difference}. {HOW_TO_REDO}.")
    for name in differences:
        target = set_aside(run_dir / name, run_dir)
        executor.console.say(f"{name}: made differently before; set aside in {target}")
