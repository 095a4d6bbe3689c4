"""The plan: which samples are kept, their row ids, and the shard of each; and what is set aside, and why."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.base.errors import DataError
from curation.base.files import atomic_path, write_atomic
from pipeline.artifacts.samples import REJECTS, REJECTS_SCHEMA
from pipeline.artifacts.splits import HELD_OUT, POOL, QUERY, SPLITS
from pipeline.sharding.database import database
from pipeline.sharding.listing import LISTING
from pipeline.stages.config import ShardConfig

_SHARDS_PER_FILE = 64
_MAX_CONTENT = 2**16
"""Bytes of a reject that are kept, where the source gave bytes and no place."""
_EXAMPLES = 3

_DUPLICATES = """
CREATE TABLE duplicates AS
WITH good AS (
    SELECT ordinal, digest, split = $query AS is_query, (CASE split WHEN $held_out THEN 0 ELSE 1 END) AS priority
    FROM read_parquet($probes) WHERE reason IS NULL
), best AS (
    SELECT ordinal, priority,
        first_value(ordinal) OVER (PARTITION BY digest, is_query ORDER BY priority, ordinal) AS kept
    FROM good
)
SELECT best.ordinal, kept, source.key AS kept_source
FROM best JOIN (SELECT ordinal, key FROM read_parquet($probes)) AS source ON source.ordinal = kept
WHERE best.ordinal <> kept ORDER BY best.ordinal
"""
"""The duplicates among usable samples. Of equal files the held-out one is kept, so that none of them is trained on; otherwise
the first. An example of what to look for takes nothing away from the pool."""


@dataclass(frozen=True)
class Plan:
    """What is written, shard by shard."""

    FILE: ClassVar[str] = "plan.json"

    groups: list[tuple[str, int]]
    """The file and the row group that list the samples of each shard."""
    num_rows: list[int]
    """Samples of each shard."""
    rejected: dict[str, int]
    """How many samples were set aside for each reason."""

    @classmethod
    def read(cls, scratch: Path) -> "Plan":
        """The plan in `scratch`."""
        content = json.loads((scratch / cls.FILE).read_text())
        return cls([(path, group) for path, group in content["groups"]], content["num_rows"], content["rejected"])


def make_plan(probes: list[str], modality_columns: pa.Schema, config: ShardConfig, out: Path, scratch: Path) -> None:
    """Write the plan and `rejects.parquet`. Streams the probes: of all samples only duplicates are in memory, or on disk."""
    paths = [str(scratch / path) for path in probes]
    _check_fraction(paths, config.max_rejected_fraction, out)
    writer = _PlanWriter(scratch, _plan_schema(modality_columns), config.samples_per_shard)
    rejected: Counter[str] = Counter()
    with (
        database(scratch, "plan") as tables,
        atomic_path(out / REJECTS) as temporary,
        pq.ParquetWriter(temporary, REJECTS_SCHEMA, compression="zstd") as rejects,
    ):
        tables.execute(_DUPLICATES, {"probes": paths, "query": QUERY, "held_out": HELD_OUT})
        num_kept = 0
        for path in paths:
            probed = pq.read_table(path)
            ordinal = probed["ordinal"].to_numpy()
            bounds = [int(ordinal[0]), int(ordinal[-1])]
            query = "SELECT ordinal, kept_source FROM duplicates WHERE ordinal BETWEEN ? AND ? ORDER BY ordinal"
            duplicates = tables.sql(query, params=bounds).to_arrow_table()
            is_duplicate = np.isin(ordinal, duplicates["ordinal"].to_numpy())
            is_bad = pc.is_valid(probed["reason"]).to_numpy()
            dropped = _rejects(probed, is_duplicate, duplicates).filter(pa.array(is_duplicate | is_bad))
            rejects.write_table(dropped)
            rejected.update(dropped["reason"].to_pylist())
            kept = probed.filter(pa.array(~(is_duplicate | is_bad)))
            writer.add(kept.append_column("row_id", pa.array(np.arange(num_kept, num_kept + kept.num_rows))))
            num_kept += kept.num_rows
    writer.finish()
    if POOL not in writer.splits:
        raise DataError("No usable image is left to train on: every one was set aside, or is in a held-out split.")
    content = {"groups": writer.groups, "num_rows": writer.num_rows, "rejected": dict(sorted(rejected.items()))}
    write_atomic(scratch / Plan.FILE, json.dumps(content))


def _check_fraction(paths: Sequence[str], max_fraction: float, out: Path) -> None:
    """Raise DataError if too many samples cannot be used."""
    num_rows = num_bad = 0
    examples: list[str] = []
    for path in paths:
        reasons = pq.read_table(path, columns=["key", "reason", "detail"])
        bad = reasons.filter(pc.is_valid(reasons["reason"]))
        num_rows, num_bad = num_rows + reasons.num_rows, num_bad + bad.num_rows
        examples += [
            f"{row['key']}: {row['reason']}" + (f": {row['detail']}" if row["detail"] else "")
            for row in bad[: _EXAMPLES - len(examples)].to_pylist()
        ]
    if num_bad > max_fraction * num_rows:
        raise DataError(
            f"{num_bad:,} of {num_rows:,} images cannot be used, more than shard.max_rejected_fraction {max_fraction} allows. "
            f"For example {'; '.join(examples)}. Mend the source and delete {out}, or raise the fraction if that is what it "
            "holds."
        )


def _rejects(probed: pa.Table, is_duplicate: np.ndarray, duplicates: pa.Table) -> pa.Table:
    """The rows of a probe as rejects; of those that are none, columns hold what does not matter."""
    place = np.full(probed.num_rows, -1)
    place[is_duplicate] = np.arange(duplicates.num_rows)
    kept_source = duplicates["kept_source"].take(pa.array(place, mask=place < 0))
    first = pc.list_element(probed["members"].combine_chunks(), 0)
    content = pc.struct_field(first, "content")
    small = pc.less_equal(pc.fill_null(pc.binary_length(content), 0), _MAX_CONTENT)
    columns = {
        "source": probed["key"],
        "split": probed["split"],
        "label": probed["label"],
        "reason": pc.if_else(pa.array(is_duplicate), "duplicate", probed["reason"]),
        "detail": probed["detail"],
        "kept_source": kept_source,
        "url": pc.struct_field(first, "url"),
        "offset": pc.struct_field(first, "offset"),
        "size": pc.struct_field(first, "size"),
        "content": pc.if_else(small, content, None),
    }
    return pa.table(columns, schema=REJECTS_SCHEMA)


def _plan_schema(modality_columns: pa.Schema) -> pa.Schema:
    listed = {field.name: field.type for field in (*LISTING, *modality_columns) if field.name not in ("reason", "detail")}
    return pa.schema({"row_id": pa.int64(), **listed, "digest": pa.binary(16)})


class _PlanWriter:
    """Gathers samples by split until they fill a shard; a shard is a row group of a file of the plan."""

    def __init__(self, scratch: Path, schema: pa.Schema, samples_per_shard: int) -> None:
        self._scratch, self._schema, self._size = scratch, schema, samples_per_shard
        self._held: dict[str, list[pa.Table]] = {split: [] for split in SPLITS}
        self._ready: list[pa.Table] = []
        self._num_files = 0
        self.splits: set[str] = set()
        self.groups: list[tuple[str, int]] = []
        self.num_rows: list[int] = []

    def add(self, samples: pa.Table) -> None:
        """Take samples with ascending row ids."""
        for split in SPLITS:
            here = samples.filter(pc.equal(samples["split"], split)).select(self._schema.names)
            for table in self._cut(split, here):
                self._write(table)

    def finish(self) -> None:
        """Write what is left of each split."""
        for held in self._held.values():
            if any(table.num_rows for table in held):
                self._write(pa.concat_tables(held))
        self._flush()

    def _cut(self, split: str, samples: pa.Table) -> Iterator[pa.Table]:
        held = self._held[split]
        held.append(samples)
        if sum(table.num_rows for table in held) >= self._size:
            table = pa.concat_tables(held)
            full = table.num_rows // self._size * self._size
            yield from (table[first : first + self._size] for first in range(0, full, self._size))
            self._held[split] = [table[full:]]

    def _write(self, shard: pa.Table) -> None:
        self.splits.add(shard["split"][0].as_py())
        self.num_rows.append(shard.num_rows)
        self.groups.append((self._file, len(self._ready)))
        self._ready.append(shard)
        if len(self._ready) == _SHARDS_PER_FILE:
            self._flush()

    @property
    def _file(self) -> str:
        return f"plan-{self._num_files:06d}.parquet"

    def _flush(self) -> None:
        if not self._ready:
            return
        with (
            atomic_path(self._scratch / self._file) as temporary,
            pq.ParquetWriter(temporary, self._schema, compression="zstd") as writer,
        ):
            for shard in self._ready:
                writer.write_table(shard.cast(self._schema), row_group_size=shard.num_rows)
        self._ready, self._num_files = [], self._num_files + 1
