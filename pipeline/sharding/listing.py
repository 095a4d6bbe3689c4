"""Listing: what exists in a source, written down once, a file a partition."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import rng
from curation.base.files import atomic_path
from pipeline.artifacts.manifest import Part
from pipeline.sharding.database import database
from pipeline.sources.long_tail import long_tail_counts
from pipeline.sources.source import Record, Source
from pipeline.splits import POOL
from pipeline.storage.location import Location

_GROUP_ROWS = 1000
_BATCH_ROWS = 10_000
_MEMBER = pa.struct(
    {"suffix": pa.string(), "url": pa.string(), "offset": pa.int64(), "size": pa.int64(), "content": pa.binary()}
)
LISTING = pa.schema(
    {
        "key": pa.string(),
        "split": pa.string(),
        "label": pa.string(),
        "known": pa.map_(pa.string(), pa.string()),
        "members": pa.list_(_MEMBER),
        "reason": pa.string(),
        "detail": pa.string(),
    }
)


def list_partition(number: int, partition: str, source: Source, scratch: Path) -> list[Part]:
    """List one partition of a source in the order of its keys. Larger than memory: DuckDB sorts on disk what does not fit."""
    unsorted, name = scratch / f"unsorted-{number:06d}.parquet", f"listed-{number:06d}.parquet"
    num_rows = 0
    with atomic_path(unsorted) as temporary, pq.ParquetWriter(temporary, LISTING, compression="zstd") as writer:
        for batch in _batches(source.records(partition, scratch / "unpacked")):
            writer.write_batch(batch)
            num_rows += batch.num_rows
    with database(scratch, f"sort-{number:06d}") as tables:
        query = "SELECT * FROM read_parquet(?) ORDER BY key, members[1].url, members[1].offset"
        ordered = tables.sql(query, params=[str(unsorted)])
        _write(scratch / name, ordered.to_arrow_reader(_GROUP_ROWS))
    unsorted.unlink()
    return [Part.describe(scratch, name, num_rows)]


def _batches(records: Iterator[Record]) -> Iterator[pa.RecordBatch]:
    while batch := list(itertools.islice(records, _BATCH_ROWS)):
        places = [place for record in batch for place in record.members.values()]
        located = [place if isinstance(place, Location) else None for place in places]
        contents = [place if isinstance(place, bytes) else None for place in places]
        members = {
            "suffix": [suffix for record in batch for suffix in record.members],
            "url": [location and location.url for location in located],
            "offset": [location and location.offset for location in located],
            "size": [place.size if isinstance(place, Location) else len(place) for place in places],
            "content": contents,
        }
        arrays = [pa.array(members[field.name], field.type) for field in _MEMBER]
        ends = np.cumsum([0, *(len(record.members) for record in batch)]).astype(np.int32)
        columns = {
            "key": [record.key for record in batch],
            "split": [record.split for record in batch],
            "label": [record.label for record in batch],
            "known": [list(record.known.items()) for record in batch],
            "members": pa.ListArray.from_arrays(pa.array(ends), pa.StructArray.from_arrays(arrays, fields=list(_MEMBER))),
            "reason": [record.problem and record.problem.reason for record in batch],
            "detail": [record.problem and record.problem.detail for record in batch],
        }
        yield pa.record_batch(columns, schema=LISTING)


def members_of(row: dict[str, Any]) -> dict[str, bytes]:
    """The bytes of a listed sample's members, by suffix."""
    return {
        member["suffix"]: Location(member["url"], member["offset"], member["size"]).read()
        if member["content"] is None
        else member["content"]
        for member in row["members"]
    }


def thin(listed: list[Part], long_tail: float, scratch: Path) -> list[Part]:
    """Thin the labelled samples of the pool to Zipf's law over their labels in alphabetical order.

    Which samples stay is decided by their keys, so that it never changes. An experiment: it holds the keys in memory.
    """
    tables = [pq.read_table(scratch / part.path, columns=["key", "split", "label"]) for part in listed]
    table = pa.concat_tables(tables)
    label = table["label"].to_numpy(zero_copy_only=False)
    is_thinned = (table["split"].to_numpy(zero_copy_only=False) == POOL) & (label != None)  # noqa: E711 - elementwise
    keeps = np.ones(len(label), dtype=bool)
    if is_thinned.any():
        rows = np.flatnonzero(is_thinned)
        names, number = np.unique(label[rows].astype(str), return_inverse=True)
        ticket = np.array([rng.key("long tail", key) for key in table["key"].take(rows).to_pylist()], dtype=np.uint64)
        counts = long_tail_counts(np.bincount(number, minlength=len(names)), long_tail)
        order = np.lexsort((ticket, number))
        place = np.arange(len(rows)) - np.searchsorted(number[order], number[order])
        keeps[rows[order]] = place < counts[number[order]]
    parts, first = [], 0
    for part in listed:
        kept = keeps[first : first + part.num_rows]
        name, first = part.path.replace("listed", "thinned"), first + part.num_rows
        _write(scratch / name, pq.read_table(scratch / part.path).filter(pa.array(kept)).to_reader(_GROUP_ROWS))
        parts.append(Part.describe(scratch, name, int(kept.sum())))
    return parts


def _write(path: Path, batches: pa.RecordBatchReader) -> None:
    """Write a listing in row groups of a thousand rows, cut alike however the batches come."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, LISTING, compression="zstd") as writer:
        held: list[pa.Table] = []
        for batch in batches:
            held.append(pa.Table.from_batches([batch]).cast(LISTING))
            while sum(table.num_rows for table in held) >= _GROUP_ROWS:
                table = pa.concat_tables(held)
                writer.write_table(table[:_GROUP_ROWS], row_group_size=_GROUP_ROWS)
                held = [table[_GROUP_ROWS:]]
        rest = pa.concat_tables([LISTING.empty_table(), *held])
        if rest.num_rows:
            writer.write_table(rest)
