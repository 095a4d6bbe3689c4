"""shard: a heap of image files becomes WebDataset tars and the index of the samples in them.

Three passes. *List* writes down what exists, once, so that later runs agree on it. *Probe* reads and decodes every file and
hashes its bytes. *Pack* copies the files that are kept into numbered tars with nothing in them that depends on when or where
they were made. JPEGs get restart markers, which change no pixel (`trainers.data.restart_markers`); all other bytes are those
of the source.
"""

import hashlib
import io
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from curation.base.files import atomic_path
from pipeline.artifacts.manifest import Part
from pipeline.config import ImagesConfig, ShardConfig
from pipeline.sources import digits
from pipeline.sources.folder import HELD_OUT, POOL, QUERY, SPLITS, find_images, thin_to_long_tail
from pipeline.stages.stage import Made, Work
from trainers.data.decoding import decode, is_jpeg

INDEX, REJECTS = "index", "rejects.parquet"
_PROBE_ROWS = 2000
_FLAT = 2.0
"""Of 255: the standard deviation below which an image shows nothing."""
_COMPRESSION = "zstd"

_LISTING = pa.schema(
    {
        "source": pa.string(),
        "file": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "split": pa.string(),
        "label": pa.string(),
        "problem": pa.string(),
    }
)
_PROBED = {"width": pa.int32(), "height": pa.int32(), "digest": pa.binary(16), "phash": pa.uint64()}
_PROBE = pa.schema({**_PROBED, "problem": pa.string()})
_PLAN = pa.schema(
    {
        "row_id": pa.int64(),
        "shard": pa.string(),
        **_PROBED,
        **{name: _LISTING.field(name).type for name in ("source", "file", "offset", "size", "split", "label")},
    }
)
INDEX_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "key": pa.string(),
        "shard": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "crc32": pa.uint32(),
        **_PROBED,
        "source": pa.string(),
        "split": pa.string(),
        "label": pa.string(),
    }
)


@dataclass(frozen=True)
class Shard:
    """Pool samples get row ids 0, 1, 2, … and shards of their own; held-out samples follow, then queries."""

    config: ShardConfig
    source: ImagesConfig | None
    """None: the input named "images" is the source."""
    kind = "samples"

    def settings(self) -> dict[str, Any]:
        source = self.source.fingerprint_fields() if self.source else None
        # Training lists say at which bytes samples lie: those of shards that were made without the markers are others.
        return {"shard": self.config.fingerprint_fields(), "source": source, "restart_markers": True}

    def make(self, work: Work) -> Made:
        source = self.source or ImagesConfig(path=digits.folder(work.inputs["images"]))
        listing = work.scratch / "listing.parquet"
        if not listing.exists():
            found = thin_to_long_tail(find_images(source.path.expanduser(), work.scratch / "unpacked"), source.long_tail)
            columns = {name: [str(v) if isinstance(v, Path) else v for v in (getattr(f, name) for f in found)]
                       for name in _LISTING.names}  # fmt: skip
            _write(pa.table(columns, schema=_LISTING), listing, row_group_size=_PROBE_ROWS)

        groups = pq.ParquetFile(listing).metadata
        probed = work.parts(
            probe_part,
            [groups.row_group(i).num_rows for i in range(groups.num_row_groups)],
            work.scratch,
            self.config.min_side,
            label="probe",
        )
        plan = work.scratch / "plan.parquet"
        if not plan.exists():
            self._plan(work, listing, [work.scratch / part.path for part in probed], plan)
        groups = pq.ParquetFile(plan).metadata
        packed = work.parts(
            pack_part,
            [groups.row_group(i).num_rows for i in range(groups.num_row_groups)],
            work.out,
            plan,
            label="pack",
        )
        names = [part.path.removesuffix(".tar") for part in packed]
        indexes = [
            Part.of(work.out, f"{INDEX}/{name}.parquet", part.num_rows) for name, part in zip(names, packed, strict=True)
        ]
        rejects = pq.read_table(work.out / REJECTS)
        pool, held_out, queries = (sum(part.num_rows for part in packed if part.path.startswith(split)) for split in SPLITS)
        statistics = {
            "files": groups.num_rows + rejects.num_rows,
            "pool": pool,
            "held_out": held_out,
            "queries": queries,
            "bytes": sum(part.num_bytes for part in packed),
            "rejected": _count(rejects["reason"]),
        }
        return Made([*packed, *indexes, Part.of(work.out, REJECTS, rejects.num_rows)], statistics)

    def _plan(self, work: Work, listing: Path, probes: list[Path], plan: Path) -> None:
        """Decide what is kept, number it, and write down what is not, and why."""
        listed = pq.read_table(listing)
        probed = pa.concat_tables([pq.read_table(path) for path in probes])
        reason = probed["problem"].to_numpy(zero_copy_only=False).astype(object)
        split = listed["split"].to_numpy(zero_copy_only=False)
        good = np.flatnonzero(reason == None)  # noqa: E711
        rejected = len(reason) - len(good)
        if rejected > self.config.max_rejected_fraction * len(reason):
            examples = "; ".join(f"{listed['source'][int(i)]}: {reason[i]}" for i in np.flatnonzero(reason != None)[:3])  # noqa: E711
            raise DataError(
                f"{rejected:,} of {len(reason):,} images cannot be used, more than shard.max_rejected_fraction "
                f"{self.config.max_rejected_fraction} allows. For example {examples}. Mend the source and "
                f"delete {work.out}, or raise the fraction if that is what it holds."
            )
        # Of equal files the held-out one is kept, so that none of them is trained on; otherwise the first. An example of what
        # to look for takes nothing away from the pool.
        digests = np.array(probed["digest"].to_pylist(), dtype=object)
        by_priority = good[np.argsort(split[good] != HELD_OUT, kind="stable")]
        first: dict[tuple[bytes, bool], int] = {}
        for index in by_priority:
            kept = first.setdefault((digests[index], split[index] == QUERY), int(index))
            if kept != index:
                reason[index] = f"duplicate of {listed['source'][kept]}"
        kept_rows = np.flatnonzero(reason == None)  # noqa: E711
        kept_rows = kept_rows[np.argsort([SPLITS.index(name) for name in split[kept_rows]], kind="stable")]
        if not (split[kept_rows] == POOL).any():
            raise DataError("No usable image is left to train on: every one was set aside, or is in a held-out split.")
        dropped = np.flatnonzero(reason != None)  # noqa: E711
        rejects = listed.take(dropped).select(["source", "split", "label"])
        _write(rejects.append_column("reason", pa.array(reason[dropped], pa.string())), work.out / REJECTS)

        shards: list[str] = []
        for name in SPLITS:
            numbers = np.arange((split[kept_rows] == name).sum()) // self.config.samples_per_shard
            shards += [f"{name}-{number:06d}" for number in numbers]
        columns = {
            "row_id": pa.array(np.arange(len(kept_rows))),
            "shard": pa.array(shards),
            **{name: probed[name].take(kept_rows) for name in _PROBED},
            **{name: listed[name].take(kept_rows) for name in ("source", "file", "offset", "size", "split", "label")},
        }
        table = pa.table(columns, schema=_PLAN)
        starts = np.flatnonzero(np.array(shards) != np.array(["", *shards[:-1]]))
        with atomic_path(plan) as temporary, pq.ParquetWriter(temporary, _PLAN, compression=_COMPRESSION) as writer:
            for start, end in zip(starts, [*starts[1:], len(shards)], strict=True):
                writer.write_table(table.slice(start, end - start), row_group_size=end - start)


def probe_part(index: int, scratch: Path, min_side: int) -> Part:
    """Read, check and hash the images of one row group of the listing."""
    listed = pq.ParquetFile(scratch / "listing.parquet").read_row_group(index).to_pylist()
    rows = [_probe(row, min_side) for row in listed]
    name = f"probe-{index:06d}.parquet"
    _write(pa.Table.from_pylist(rows, schema=_PROBE), scratch / name)
    return Part.of(scratch, name, len(rows))


def _probe(row: dict[str, Any], min_side: int) -> dict[str, Any]:
    nothing = {"width": 0, "height": 0, "digest": bytes(16), "phash": None}
    if row["problem"]:
        return {**nothing, "problem": row["problem"]}
    try:
        content = _read(row)
        image = decode(content)
    except (DataError, OSError) as error:
        return {**nothing, "problem": str(error)}
    height, width = image.shape[:2]
    problem = f"too small: {width} x {height} pixels" if min(width, height) < min_side else None
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return {"width": width, "height": height, "digest": digest, "phash": _phash(image), "problem": problem}


def _phash(image: np.ndarray) -> int | None:
    """The perceptual hash of (H, W, 3) uint8; None if there is nothing to be seen, for all such images would be alike."""
    from curation.dedup.hashing import perceptual_hash
    from trainers.data.resize import crop_resize

    gray = crop_resize(image, 0, 0, image.shape[0], image.shape[1], 32).float().mean(0)
    return int(perceptual_hash(gray[None])[0]) if gray.std() > _FLAT else None


def pack_part(index: int, out: Path, plan: Path) -> Part:
    """Write one shard and its index from one row group of the plan."""
    rows = pq.ParquetFile(plan).read_row_group(index).to_pylist()
    shard = rows[0]["shard"]
    entries = []
    with (
        atomic_path(out / f"{shard}.tar") as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for row in rows:
            content = _read(row)
            if hashlib.blake2b(content, digest_size=16).digest() != row["digest"]:
                raise DataError(
                    f"{row['file']} changed while it was being sharded. Let the source rest, delete {out}, and run again."
                )
            if is_jpeg(content):
                from trainers.data.restart_markers import with_restarts  # what it imports compiles for a second

                content = with_restarts(content)
            key = f"{row['row_id']:09d}"
            member = tarfile.TarInfo(key + os.path.splitext(row["source"])[1].lower())
            member.size = len(content)  # time, owner and group stay zero: equal samples make equal bytes
            offset = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, io.BytesIO(content))
            place = {"shard": f"{shard}.tar", "offset": offset, "size": len(content), "crc32": zlib.crc32(content)}
            entries.append({**row, "key": key, **place})
    _write(pa.Table.from_pylist(entries, schema=INDEX_SCHEMA), out / INDEX / f"{shard}.parquet")
    return Part.of(out, f"{shard}.tar", len(rows))


def _read(row: dict[str, Any]) -> bytes:
    with open(row["file"], "rb") as file:
        file.seek(row["offset"])
        return file.read(row["size"])


def _write(table: pa.Table, path: Path, **options: object) -> None:
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression=_COMPRESSION, **options)


def _count(reasons: pa.ChunkedArray) -> dict[str, int]:
    """How many were rejected for each kind of reason: the words before the particulars."""
    kinds = [reason.split(":")[0].split(" of ")[0] for reason in reasons.to_pylist()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}


def read_index(samples: Path, split: str, columns: Sequence[str]) -> pa.Table:
    """Columns of the sample index for one split, in row-id order."""
    files = sorted((samples / INDEX).glob(f"{split}-*.parquet"))
    empty = pa.schema([INDEX_SCHEMA.field(name) for name in columns]).empty_table()
    return pa.concat_tables([empty, *(pq.read_table(file, columns=list(columns)) for file in files)])
