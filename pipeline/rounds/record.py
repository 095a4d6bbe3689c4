"""What a run's directory says about itself: for the report, the plan and the status."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import ValidationError

from curation.base.errors import DataError
from pipeline.artifacts.manifest import BEGUN, Manifest
from pipeline.config import RunConfig
from pipeline.rounds.graph import steps
from pipeline.stages.select import SELECTION, TRAINING

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What a run's directory says about itself."""

    directory: Path
    config: RunConfig | None
    config_text: str
    stages: tuple[str, ...]
    manifests: dict[str, Manifest]
    """Of the finished stages."""
    seconds: dict[str, float]
    invocations: list[dict[str, Any]]
    notes: list[str]
    """What could not be read."""

    @classmethod
    def read(cls, directory: Path) -> "Run":
        notes: list[str] = []
        path = directory / "config.yaml"
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
        config = None
        try:
            config = RunConfig.model_validate(yaml.safe_load(text))
            names = [step.name for step in steps(config)]
        except (yaml.YAMLError, ValidationError, DataError):
            notes.append("config.yaml cannot be read by this version; the stages shown are those that were begun.")
            names = sorted(p.parent.relative_to(directory).as_posix() for p in directory.glob(f"*/{BEGUN}"))
            names += sorted(p.parent.relative_to(directory).as_posix() for p in directory.glob(f"*/*/{BEGUN}"))
        manifests = {}
        for name in names:
            try:
                manifests[name] = Manifest.read(directory / name)
            except DataError as error:
                if (directory / name / "manifest.json").exists():
                    notes.append(str(error))
        events = [json.loads(line) for line in whole_lines(directory / "events.jsonl")]
        seconds = {event["stage"]: float(event["seconds"]) for event in events}
        try:
            invocations = list(json.loads((directory / "provenance.json").read_text()))
        except (OSError, ValueError):  # a page without it is better than none
            invocations = []
        return cls(directory, config, text, tuple(names), manifests, seconds, invocations, notes)

    def attempt(self, function: Callable[..., T], *args: object) -> T | None:
        """`function(*args)`; if a file of the run is missing or damaged, None and a note on the page."""
        try:
            return function(*args)
        except (DataError, OSError, pa.ArrowInvalid) as error:
            self.notes.append(str(error))
            return None

    def rounds(self, *stages: str) -> list[int]:
        """Numbers of the rounds in which all of `stages` are finished."""
        numbers = {int(name.split("/")[0][6:]) for name in self.stages if name.startswith("round-")}
        return sorted(n for n in numbers if all(f"round-{n}/{stage}" in self.manifests for stage in stages))

    def pictured_rounds(self) -> list[int]:
        """The first clustered round and the two newest."""
        numbers = self.rounds("embed", "cluster")
        return numbers[:1] + numbers[1:][-2:]

    def statistics(self, stage: str) -> dict[str, Any]:
        return self.manifests[stage].statistics if stage in self.manifests else {}

    def scores(self) -> list[tuple[str, dict[str, Any]]]:
        """Evaluations in order, the baseline first, with what to call them."""
        names = [("baseline", "baseline"), *((f"round {n}", f"round-{n}") for n in self.rounds("evaluate"))]
        found = [(name, self.statistics(f"{place}/evaluate")) for name, place in names]
        return [(name, statistics) for name, statistics in found if statistics]

    def baseline_name(self) -> str:
        encoder = self.config.embed.encoder if self.config else None
        if encoder is None:
            return "the encoder it began with"
        return (
            "raw pixels"
            if encoder.type == "pixels"
            else f"{getattr(encoder, 'model', encoder.type)}, the encoder it began with"
        )

    def selected(self, number: int) -> np.ndarray:
        """(N,) bool: which rows of the pool a round selected. A byte a row."""
        chosen = np.zeros(int(self.statistics("samples").get("pool", 0)), dtype=bool)
        for batch in pq.ParquetFile(self.directory / f"round-{number}/select/{SELECTION}").iter_batches(columns=["row_id"]):
            chosen[batch.column("row_id").to_numpy()] = True
        return chosen

    def selected_sizes(self, number: int, level: int, num: int) -> np.ndarray:
        """(K,) int64: how many rows a round selected of each of the `num` clusters of a level."""
        sizes = np.zeros(num, dtype=np.int64)
        table = pq.ParquetFile(self.directory / f"round-{number}/select/{TRAINING}")
        for batch in table.iter_batches(columns=[f"level_{level}"]):
            sizes += np.bincount(batch.column(0).to_numpy(), minlength=num)
        return sizes

    def stage_table(self) -> list[dict[str, Any]]:
        """For each stage what it is, how far, how long it took and what it made."""
        longest = max(self.seconds.values(), default=0) or 1
        rows = []
        for name in self.stages:
            manifest = self.manifests.get(name)
            seconds = self.seconds.get(name)
            begun = (self.directory / name / BEGUN).exists()
            rows.append(
                {
                    "name": name,
                    "state": "finished" if manifest else "begun" if begun else "to do",
                    "seconds": seconds,
                    "share": (seconds or 0) / longest,
                    "made": headline(manifest) if manifest else "",
                    "bytes": sum(part.num_bytes for part in manifest.parts) if manifest else None,
                    "fingerprint": manifest.fingerprint if manifest else "",
                }
            )
        return rows


def headline(manifest: Manifest) -> str:
    """What a finished stage made, in a few words."""
    s = manifest.statistics
    says: dict[str, Callable[[], str]] = {
        "raw images": lambda: f"{s['files']:,} files",
        "samples": lambda: f"pool {s['pool']:,}, held out {s['held_out']:,}, set aside {sum(s['rejected'].values()):,}",
        "embeddings": lambda: f"{s['rows']:,} \u00d7 {s['dim']:,} features",
        "clusters": lambda: f"{s['rows']:,} rows → " + " → ".join(f"{level['clusters']:,}" for level in s["levels"]),
        "duplicates": lambda: f"{s['dropped']:,} of {s['rows']:,} rows say what others say, {s['pairs']:,} pairs",
        "selection": lambda: f"{s['selected']:,} of {s['pool']:,} samples",
        "training": lambda: (
            f"{s['steps']:,} steps, loss {s['final_loss']:.3f}"
            + (f", best encoder after {s['best']['step']:,}" if "best" in s else "")
        ),
        "evaluation": lambda: (
            (f"kNN {s['knn']:.1%}, linear {s['linear']:.1%}, " if "knn" in s else "") + f"RankMe {s['rankme']:.1f}"
        ),
    }
    return says[manifest.kind]() if manifest.kind in says else ""


def whole_lines(path: Path) -> Iterator[str]:
    """Lines of a file that may be missing, or cut short by a kill."""
    if path.is_file():
        with path.open() as file:
            yield from (line for line in file if line.endswith("}\n"))
