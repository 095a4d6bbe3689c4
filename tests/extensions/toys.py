"""What a user might add from outside: a source, a modality and a stage, each in one place."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from curation.base.config import Config
from curation.base.files import write_atomic
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples
from pipeline.modalities.modality import SIGNATURE, Pairs, Probe, Problem
from pipeline.sources.source import Record
from pipeline.splits import HELD_OUT, POOL
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput
from pipeline.storage.location import Location


class PoemsConfig(Config):
    """Lines of a text file as documents."""

    type: Literal["poems"] = "poems"
    path: Path


@dataclass(frozen=True)
class Poems:
    """A partition is every third line; even lines are held out; each has a note beside it."""

    config: PoemsConfig
    modality: ClassVar[str] = "lines"
    long_tail: float = 1

    def partitions(self) -> list[str]:
        return ["0", "1", "2"]

    def records(self, partition: str, scratch: Path) -> Iterator[Record]:
        offset = 0
        for number, line in enumerate(self.config.path.read_bytes().splitlines(keepends=True)):
            if number % 3 == int(partition):
                place = Location(str(self.config.path), offset, len(line) - 1)
                split = POOL if number % 2 else HELD_OUT
                known = {"licence": "public domain"}
                yield Record(f"line {number:03d}", {".txt": place, ".note": f"note {number}".encode()}, split, known=known)
            offset += len(line)

    def describe_empty(self) -> str:
        return "No poem has a line."

    def size(self) -> tuple[int, int, int]:
        lines = self.config.path.read_bytes().splitlines()
        return len(lines) // 2, len(lines) - len(lines) // 2, sum(map(len, lines))


@dataclass(frozen=True)
class Lines:
    """Lines of text. Signatures are the numbers of their letters."""

    min_side: int = 1
    columns: ClassVar[pa.Schema] = pa.schema({"num_words": pa.int32(), SIGNATURE: pa.uint64()})

    def probe(self, content: bytes) -> Probe:
        if not content.strip():
            return Probe(problem=Problem("blank line"))
        return Probe({"num_words": len(content.split()), SIGNATURE: len(content)})

    def stored(self, content: bytes) -> bytes:
        return content

    def near_signatures(self, signatures: np.ndarray, max_distance: int) -> Iterator[Pairs]:
        first, second = np.triu_indices(len(signatures), 1)
        away = np.abs(signatures[first].astype(np.int64) - signatures[second].astype(np.int64))
        near = away <= max_distance
        yield first[near], second[near], away[near]

    def detail(self, columns: pa.Table) -> np.ndarray:
        return columns["num_words"].to_numpy().astype(np.int64)

    def picture(self, content: bytes) -> np.ndarray | None:
        return None


@dataclass(frozen=True)
class WordCount(Artifact):
    """`words.json`: the number of words of each split."""

    kind = "word count"


@dataclass(frozen=True)
class CountWords(Stage):
    """Adds up the words of samples, a task a shard."""

    name = "count-words"
    makes = WordCount
    inputs: ClassVar[Mapping[str, Input]] = {"samples": Input(Samples)}

    def settings(self) -> dict[str, Any]:
        return {}

    def make(self, context: StageContext) -> StageOutput:
        samples: Samples = context.inputs["samples"]
        shards = samples.shards()
        items = [(number, shard.path) for number, shard in enumerate(shards)]
        num_rows = [shard.num_rows for shard in shards]
        parts = context.parts(count_part, items, samples.directory, context.out, num_rows=num_rows, label="count", unit="lines")
        words = sum(json.loads((context.out / part.path).read_text()) for part in parts)
        return StageOutput(parts, {"words": words})

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        return Estimate(inputs["samples"].rows)

    def describe(self, manifest: Manifest) -> str:
        return f"{manifest.statistics['words']:,} words"


def count_part(number: int, shard: str, samples: Path, out: Path) -> list[Part]:
    """Write the number of words of one shard."""
    opened = Samples.open(samples)
    (index,) = (part for part in opened.indexes() if part.path.endswith(shard.replace(".tar", ".parquet")))
    row_ids = opened.index(index.split or "", ["row_id", "num_words"])
    first, last = index.row_ids or (0, -1)
    words = sum(row["num_words"] for row in row_ids.to_pylist() if first <= row["row_id"] <= last)
    write_atomic(out / f"words-{number}.json", json.dumps(words))
    return [Part.describe(out, f"words-{number}.json", 1)]
