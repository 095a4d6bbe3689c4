"""What sharding and selecting cost as the pool grows, on the driver and in any one task: no images, the tables only.

`shard-1m`, `-10m`, `-100m`: so many records are listed in partitions of a million, and sorted; their digests, of which one in
twenty equals an earlier one, are compared; and shards of 5,000 samples are planned. `select-1m`, …: 30 % of so many rows are
selected evenly over three levels of clusters, and the training list is written, with places and pseudo-labels. Tasks run in
processes of their own; `peak_bytes` is the most that one of them holds beside pages of files, `driver_bytes` what the process
that sends them out holds.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, ClassVar

import harness
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.files import save_array
from curation.selectors.config import BalancedConfig
from pipeline.artifacts.clusters import ROW_ID, Clusters
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples, index_name, shard_name, write_table
from pipeline.modalities.modality import open_modality
from pipeline.sharding.listing import list_partition
from pipeline.sharding.plan import Plan, make_plan
from pipeline.sources.source import Record
from pipeline.splits import POOL
from pipeline.stages.select import select_rows
from pipeline.stages.shard import probe_schema
from pipeline.storage.location import Location

_ROWS = {"1m": 10**6, "10m": 10**7, "100m": 10**8}
_PARTITION = 1_000_000
_PROBE = 10_000
_SHARD = 5000
_DUPLICATES = 20
_WORKERS = 2


@dataclass(frozen=True)
class Simulated:
    """A source of records without bytes, in an order that is not that of their keys."""

    num: int
    modality: ClassVar[str] = "image"
    long_tail: float = 1

    def partitions(self) -> list[str]:
        return [str(number) for number in range(-(-self.num // _PARTITION))]

    def records(self, partition: str, scratch: Path) -> Iterator[Record]:  # noqa: ARG002
        first = int(partition) * _PARTITION
        for row in np.random.default_rng(first).permutation(min(_PARTITION, self.num - first)).tolist():
            key = f"train/class {row % 1000:03d}/{first + row:012d}.jpg"
            yield Record(key, {".jpg": Location(f"/data/images/{key}", 0, 110_000)}, POOL, f"class {row % 1000:03d}")

    def describe_empty(self) -> str:
        return ""

    def size(self) -> tuple[int, int, int]:
        return self.num, 0, 110_000 * self.num


def measured(function: Callable[..., Any], *args: object) -> tuple[Any, int, float]:
    """The value of `function(*args)`, the bytes it held at the most, and its seconds."""
    began = harness.now()
    with harness.PeakMemory() as memory:
        value = function(*args)
    return value, memory.num_bytes, harness.now() - began


def in_tasks(function: Callable[..., Any], calls: list[tuple[object, ...]]) -> tuple[list[Any], int, float]:
    """Values of many calls, several at a time; the most that one of them held, and the seconds until the last had ended."""
    began = harness.now()
    with ProcessPoolExecutor(_WORKERS, get_context("forkserver")) as pool:
        done = [task.result() for task in [pool.submit(measured, function, *call) for call in calls]]
    return [value for value, _, _ in done], max(num_bytes for _, num_bytes, _ in done), harness.now() - began


def measure_shard(num: int, scratch: Path) -> harness.Row:
    """Listing, duplicates and the plan."""
    source, modality = Simulated(num), open_modality("image")
    with harness.PeakMemory() as driver:
        calls = [(number, partition, source, scratch) for number, partition in enumerate(source.partitions())]
        listed, list_bytes, list_seconds = in_tasks(list_partition, calls)
        parts = [part for value in listed for part in value]
        offsets = np.cumsum([0, *(part.num_rows for part in parts)]).tolist()
        probed, _, _ = in_tasks(
            _simulate_probes, [(part.path, first, scratch) for part, first in zip(parts, offsets, strict=False)]
        )
        names = [name for value in probed for name in value]
        arguments = (names, modality.columns, _SHARD, 1.0, scratch, scratch)
        _, plan_bytes, plan_seconds = in_tasks(make_plan, [arguments])
        plan = Plan.read(scratch)
    assert sum(plan.num_rows) + sum(plan.rejected.values()) == num
    return {
        "list_seconds": list_seconds,
        "plan_seconds": plan_seconds,
        "shards": len(plan.groups),
        "duplicates": plan.rejected["duplicate"],
        "peak_bytes": max(list_bytes, plan_bytes),
        "driver_bytes": driver.num_bytes,
    }


def _simulate_probes(listing: str, first: int, scratch: Path) -> list[str]:
    """Write what probes of a listing would see. Not measured: real ones decode images."""
    schema = probe_schema(open_modality("image"))
    names = []
    for number, batch in enumerate(pq.ParquetFile(scratch / listing).iter_batches(batch_size=_PROBE)):
        ordinal = np.arange(first + number * _PROBE, first + number * _PROBE + batch.num_rows)
        draws = np.random.default_rng(int(ordinal[0]))
        # One in twenty has the digest of another row, anywhere before it.
        original = np.where(draws.random(len(ordinal)) < 1 / _DUPLICATES, draws.integers(0, ordinal + 1), ordinal)
        words = np.stack([original.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15), original.astype(np.uint64)], axis=1)
        digest = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(words), [None, pa.py_buffer(words.tobytes())])
        seen = {"ordinal": ordinal, "digest": digest, "signature": draws.integers(0, 2**63, len(ordinal)).astype(np.uint64)}
        seen |= {name: np.full(len(ordinal), 256, np.int32) for name in ("width", "height")}
        table = pa.Table.from_batches([batch])
        columns = [seen[name] if name in seen else table[name] for name in schema.names]
        names.append(f"probed-{ordinal[0]:012d}.parquet")
        write_table(pa.table(columns, schema=schema), scratch / names[-1])
    return names


def measure_select(num: int, scratch: Path) -> harness.Row:
    """The selection and the training list."""
    samples, clusters = scratch / "samples", scratch / "clusters"
    with harness.PeakMemory() as driver:
        shards = [(number, min(_SHARD, num - number * _SHARD)) for number in range(-(-num // _SHARD))]
        pieces = [(shards[start : start + 500], samples) for start in range(0, len(shards), 500)]
        written, _, _ = in_tasks(_simulate_indexes, pieces)
        in_tasks(_simulate_clusters, [([part for value in written for part in value], samples, num, clusters)])
        del written, pieces, shards
        out = scratch / "selection"
        out.mkdir()
        directories = {"samples": samples, "clusters": clusters}
        (value,), peak_bytes, seconds = in_tasks(select_rows, [(BalancedConfig(fraction=0.3), 0, directories, out)])
    parts, statistics = value
    assert statistics["selected"] == parts[1].num_rows == round(0.3 * num)
    return {
        "seconds": seconds,
        "selected": statistics["selected"],
        "list_bytes": parts[1].num_bytes,
        "peak_bytes": peak_bytes,
        "driver_bytes": driver.num_bytes,
    }


def _simulate_indexes(shards: list[tuple[int, int]], samples: Path) -> list[Part]:
    """Write the indexes of shards; the samples' own row ids have gaps, as held-out samples make them."""
    parts = []
    for number, rows in shards:
        row_id = (number * _SHARD + np.arange(rows)) * 2
        columns = {
            "row_id": row_id,
            "shard": pa.array([f"{shard_name(number)}.tar"] * rows),
            "offset": np.arange(rows) * 110_592 + 512,
            "size": np.full(rows, 110_000),
            "crc32": (row_id * 2654435761 % 2**32).astype(np.uint32),
        }
        write_table(pa.table(columns), samples / index_name(shard_name(number)))
        bounds = (int(row_id[0]), int(row_id[-1]))
        parts.append(Part.describe(samples, index_name(shard_name(number)), rows, split=POOL, row_ids=bounds))
    return parts


def _simulate_clusters(index: list[Part], samples: Path, num: int, clusters: Path) -> None:
    """Write the manifest of the samples, and clusters over them: the first ones are several times as large as the last."""
    ids = {"fingerprint": "samples", "settings": {}, "parents": {}, "ancestors": {}, "version": 1}
    Manifest(kind="samples", layout=Samples.layout, parts=tuple(index), statistics={"modality": "image"}, **ids).write(samples)
    draws, below, counts = np.random.default_rng(0), num, np.ones(num, dtype=np.int64)
    save_array(clusters / ROW_ID, np.arange(num) * 2)
    paths = [(ROW_ID, num)]
    for level, num_clusters in enumerate((num // 100, num // 1000, num // 10_000), start=1):
        assignment = (num_clusters * draws.random(below) ** 2).astype(np.int32)
        counts = np.bincount(assignment, weights=counts, minlength=num_clusters).astype(np.int64)
        arrays = {
            "centroids": np.zeros((num_clusters, 0), np.float32),
            "assignment": assignment,
            "squared_distance": draws.random(below, dtype=np.float32),
            "sizes": counts,
        }
        for name, array in arrays.items():
            save_array(clusters / f"level-{level}" / f"{name}.npy", array)
            paths.append((f"level-{level}/{name}.npy", len(array)))
        below = num_clusters
    parts = tuple(Part.describe(clusters, path, rows) for path, rows in paths)
    ids |= {"fingerprint": "clusters", "ancestors": {"samples": "samples"}}
    manifest = Manifest(kind="clusters", layout=Clusters.layout, parts=parts, statistics={"normalized": True}, **ids)
    manifest.write(clusters)


def measure(case: str, engine: str, seed: int, args: argparse.Namespace) -> harness.Row:  # noqa: ARG001
    """One case, in a directory of its own that goes at the end."""
    what, _, size = case.partition("-")
    scratch = Path(tempfile.mkdtemp(dir=args.directory, prefix="windrow-scale-"))
    try:
        row = (measure_shard if what == "shard" else measure_select)(_ROWS[size], scratch)
        print(json.dumps(row), flush=True)
        return row
    finally:
        shutil.rmtree(scratch)


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--directory", type=Path, default=Path(tempfile.gettempdir()), help="where tables are written: 40 GB for 100 million"
    )


if __name__ == "__main__":
    cases = {f"{what}-{size}": ["windrow"] for what in ("shard", "select") for size in _ROWS}
    harness.main("scale", {"cpu": cases}, measure, _arguments)
