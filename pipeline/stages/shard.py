"""shard: raw samples become WebDataset tars and the index of the samples in them.

Four passes, none of which holds the pool in memory. *List* writes down what exists, partition by partition, so that later runs
agree on it. *Probe* reads every sample, looks at it as its modality says, and hashes its bytes. *Plan* finds exact duplicates
and numbers what is kept. *Pack* copies the kept samples into numbered tars with nothing in them that depends on when or where
they were made.
"""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from curation.base.files import atomic_path, write_atomic
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import REJECTS, Samples, index_name, index_schema, shard_name, write_table
from pipeline.modalities.modality import Modality, Problem, open_modality
from pipeline.runtime.config import Resources
from pipeline.sharding.listing import LISTING, list_partition, members_of, thin
from pipeline.sources.source import Source, open_source, settings_of
from pipeline.splits import HELD_OUT, POOL, QUERY
from pipeline.stages.config import ShardConfig
from pipeline.stages.stage import Estimate, Stage, StageContext, StageOutput

_PROBE_ROWS = 2000
_MAX_PROBES = 10_000
"""Maximum number of probes; for larger sources each takes more rows."""


@dataclass(frozen=True)
class Shard(Stage):
    """Samples are numbered in the order of their names; a shard holds samples of one split."""

    config: ShardConfig
    source: Any
    """Settings of the source."""
    name = "shard"
    makes = Samples
    resources = Resources(gpus=0)

    def settings(self) -> dict[str, Any]:
        return {"source": settings_of(self.source), **self.config.fingerprint_fields()}

    def make(self, context: StageContext) -> StageOutput:
        from pipeline.sharding.plan import Plan, make_plan

        source, scratch = open_source(self.source), context.scratch
        partitions = self._partitions(context, source)
        listed = context.parts(
            list_partition, [(n, p) for n, p in enumerate(partitions)], source, scratch, num_rows=[1] * len(partitions),
            label="list", unit="partitions",
        )  # fmt: skip
        if not any(part.num_rows for part in listed):
            raise DataError(source.describe_empty())
        if source.long_tail > 1:
            listed = context.parts(
                thin, [(listed,)], source.long_tail, scratch, num_rows=[1], label="thin", unit="listings"
            )  # fmt: skip
        modality = open_modality(source.modality, min_side=self.config.min_side)
        probes = _probe_items(scratch, listed)
        probed = context.parts(
            probe_part, [item for item, _ in probes], modality, scratch, num_rows=[num for _, num in probes], label="probe"
        )
        if not (scratch / Plan.FILE).exists():
            limits = (self.config.samples_per_shard, self.config.max_rejected_fraction)
            paths = [part.path for part in probed]
            context.call(make_plan, paths, modality.columns, *limits, context.out, scratch)
        plan = Plan.read(scratch)
        packed = context.parts(
            pack_part, [(number, *place) for number, place in enumerate(plan.groups)], modality, context.out, scratch,
            num_rows=plan.num_rows, label="pack",
        )  # fmt: skip
        shards = [part for part in packed if part.path.endswith(".tar")]
        kept = {split: sum(part.num_rows for part in shards if part.split == split) for split in (POOL, HELD_OUT, QUERY)}
        statistics = {
            "modality": source.modality,
            "files": sum(kept.values()) + sum(plan.rejected.values()),
            "pool": kept[POOL],
            "held_out": kept[HELD_OUT],
            "queries": kept[QUERY],
            "bytes": sum(part.num_bytes for part in shards),
            "rejected": plan.rejected,
        }
        return StageOutput([*packed, Part.describe(context.out, REJECTS, sum(plan.rejected.values()))], statistics)

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:  # noqa: ARG002
        pool, others, num_bytes = open_source(self.source).size()
        return self._estimate(pool, others, num_bytes)

    def measured(self, manifest: Manifest, inputs: Mapping[str, Estimate]) -> Estimate:  # noqa: ARG002
        counts = manifest.statistics
        return self._estimate(counts["pool"], counts["held_out"] + counts["queries"], counts["bytes"])

    def describe(self, manifest: Manifest) -> str:
        s = manifest.statistics
        return f"pool {s['pool']:,}, held out {s['held_out']:,}, set aside {sum(s['rejected'].values()):,}"

    def _estimate(self, pool: int, others: int, num_bytes: int) -> Estimate:
        shards = -(-pool // self.config.samples_per_shard) - (-others // self.config.samples_per_shard)
        return Estimate(pool, others, parts=2 * shards, num_bytes=num_bytes, decodes=pool + others)

    @staticmethod
    def _partitions(context: StageContext, source: Source) -> list[str]:
        path = context.scratch / "partitions.json"
        if not path.exists():
            context.call(_write_partitions, source, path)
        partitions: list[str] = json.loads(path.read_text())
        return partitions


def _write_partitions(source: Source, path: Path) -> None:
    write_atomic(path, json.dumps(source.partitions()))


def _probe_items(scratch: Path, listed: list[Part]) -> list[tuple[tuple[int, int, list[tuple[str, int]]], int]]:
    """What each probe reads, and how many rows that is: its number, its first ordinal, and row groups of listings."""
    total = sum(part.num_rows for part in listed)
    num_rows = max(_PROBE_ROWS, -(-total // _MAX_PROBES))
    items: list[tuple[tuple[int, int, list[tuple[str, int]]], int]] = []
    groups: list[tuple[str, int]] = []
    first = rows = 0
    for part in listed:
        metadata = pq.read_metadata(scratch / part.path)
        for group in range(metadata.num_row_groups):
            groups.append((part.path, group))
            rows += metadata.row_group(group).num_rows
            if rows >= num_rows:
                items.append(((len(items), first, groups), rows))
                first, rows, groups = first + rows, 0, []
    return [*items, ((len(items), first, groups), rows)] if groups else items


def probe_part(number: int, first: int, groups: list[tuple[str, int]], modality: Modality, scratch: Path) -> list[Part]:
    """Read, look at and hash the samples of some row groups of the listings."""
    rows = []
    for path, group in groups:
        rows += pq.ParquetFile(scratch / path).read_row_group(group).to_pylist()
    schema = probe_schema(modality)
    probed = [_probe(row, modality) | {"ordinal": first + index} for index, row in enumerate(rows)]
    name = f"probed-{number:06d}.parquet"
    write_table(pa.Table.from_pylist(probed, schema=schema), scratch / name)
    return [Part.describe(scratch, name, len(rows))]


def probe_schema(modality: Modality) -> pa.Schema:
    """The columns of a probe: those of the listing, and what was seen."""
    fields = {field.name: field.type for field in (*LISTING, *modality.columns)}
    return pa.schema({"ordinal": pa.int64(), **fields, "digest": pa.binary(16)})


def _probe(row: dict[str, Any], modality: Modality) -> dict[str, Any]:
    if row["reason"] is not None:
        return row
    content = next(iter(members_of(row).values()))
    probe = modality.probe(content)
    if probe.problem is not None:
        return {**row, **_as_columns(probe.problem)}
    return {**row, **probe.columns, "digest": _digest(content)}


def _as_columns(problem: Problem) -> dict[str, str]:
    return {"reason": problem.reason, "detail": problem.detail}


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def pack_part(number: int, path: str, group: int, modality: Modality, out: Path, scratch: Path) -> list[Part]:
    """Write one shard and its index from one row group of the plan."""
    rows = pq.ParquetFile(scratch / path).read_row_group(group).to_pylist()
    shard, entries = shard_name(number), []
    with (
        atomic_path(out / f"{shard}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row in rows:
            members = members_of(row)
            first = next(iter(members))
            if _digest(members[first]) != row["digest"]:
                raise DataError(
                    f"{row['key']} changed while it was being sharded. Let the source rest, delete {out}, and run again."
                )
            key = f"{row['row_id']:09d}"
            written = [
                _add(tar, key, suffix, modality.stored(content) if suffix == first else content)
                for suffix, content in members.items()
            ]
            place = {name: value for name, value in written[0].items() if name != "name"}
            entries.append({**row, "source": row["key"], "key": key, "shard": f"{shard}.tar", "generation": 0, **place})
            entries[-1]["members"] = written[1:]
    ids, split = (rows[0]["row_id"], rows[-1]["row_id"]), rows[0]["split"]
    write_table(pa.Table.from_pylist(entries, schema=index_schema(modality.columns)), out / index_name(shard))
    names = (f"{shard}.tar", index_name(shard))
    return [Part.describe(out, name, len(rows), split=split, row_ids=ids) for name in names]


def _add(tar: tarfile.TarFile, key: str, suffix: str, content: bytes) -> dict[str, Any]:
    """Write one member; where it lies."""
    member = tarfile.TarInfo(key + suffix)
    member.size = len(content)  # time, owner and group stay zero: equal samples make equal bytes
    offset = tar.offset + tarfile.BLOCKSIZE
    tar.addfile(member, io.BytesIO(content))
    return {"name": suffix, "offset": offset, "size": len(content), "crc32": zlib.crc32(content)}
