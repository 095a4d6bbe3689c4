"""Samples: WebDataset shards, the index of what is in them, and what was set aside.

`shard-*.tar` hold the samples; plain WebDataset reads them. `index/shard-*.parquet` say, for each sample of a shard, what it is
and at which bytes it lies. `rejects.parquet` lists what was set aside, and why. A shard holds samples of one split; which, and
from which generation, its index says in columns. Row ids ascend within a split.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from curation.base.files import atomic_path
from pipeline.artifacts.artifact import Artifact, verified
from pipeline.artifacts.manifest import Part
from trainers.data.samples import PLACE, SHARDS_URL, SampleList

REJECTS = "rejects.parquet"
_EXAMPLE_ROWS = 1024
_MEMBER = pa.struct({"name": pa.string(), "offset": pa.int64(), "size": pa.int64(), "crc32": pa.uint32()})
_FIRST = {
    "row_id": pa.int64(),
    "key": pa.string(),
    "shard": pa.string(),
    "generation": pa.int32(),
    "split": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
    "crc32": pa.uint32(),
    "members": pa.list_(_MEMBER),
    "digest": pa.binary(16),
}
_LAST = {"source": pa.string(), "label": pa.string(), "known": pa.map_(pa.string(), pa.string())}
REJECTS_SCHEMA = pa.schema(
    {
        "source": pa.string(),
        "split": pa.string(),
        "label": pa.string(),
        "reason": pa.string(),
        "detail": pa.string(),
        "kept_source": pa.string(),
        "url": pa.string(),
        "offset": pa.int64(),
        "size": pa.int64(),
        "content": pa.binary(),
    }
)
"""`reason` is one of a few, `detail` the particulars; `kept_source` is what an exact duplicate equals. The bytes are `content`,
or lie at `offset` of `url`."""


def index_schema(modality_columns: pa.Schema) -> pa.Schema:
    """The columns of an index: those of every modality, and the columns of this one.

    `offset`, `size` and `crc32` are those of the member that is decoded; `members` lists the others. `digest` is of the
    sample's bytes in the source, `known` what else the source says of it.
    """
    return pa.schema({**_FIRST, **{field.name: field.type for field in modality_columns}, **_LAST})


@dataclass(frozen=True)
class Samples(Artifact):
    """Shards, and the index of their samples."""

    kind = "samples"
    layout = 2

    def check_parts(self) -> None:
        """As for every artifact; shards that were moved into a store are where `shards.url` says, and not checked here."""
        if not (self.directory / SHARDS_URL).exists():
            super().check_parts()

    @property
    def modality(self) -> str:
        """The name of the modality."""
        return str(self.statistics["modality"])

    def shards(self, split: str | None = None) -> list[Part]:
        """The shards of one split, or all, in the order of their names."""
        return [part for part in self.parts(".tar") if split in (None, part.split)]

    def indexes(self, split: str | None = None) -> list[Part]:
        """The index of each of `shards`."""
        return [part for part in self.parts(".parquet") if part.path != REJECTS and split in (None, part.split)]

    def tables(self, split: str | None, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of the index, a table a shard."""
        for part in self.indexes(split):
            yield pq.read_table(verified(self.directory, part), columns=list(columns))

    def index(self, split: str, columns: Sequence[str]) -> pa.Table:
        """Columns of the index of one split, in the order of row ids. Held in memory: for a few numbers a row."""
        return pa.concat_tables([self.schema(columns).empty_table(), *self.tables(split, columns)])

    def rows(self, row_ids: np.ndarray, columns: Sequence[str], split: str) -> pa.Table:
        """Columns of the index at `row_ids` (M,) of one split, in their order. Reads only the files that they are in.

        Raises DataError if some are not there.
        """
        order = np.argsort(row_ids, kind="stable")
        ascending = row_ids[order]
        parts = self.indexes(split)
        first = np.array([part.row_ids[0] for part in parts if part.row_ids], dtype=np.int64)
        tables = [self.schema(columns).empty_table()]
        for number, num in zip(*np.unique(np.searchsorted(first, ascending, "right") - 1, return_counts=True), strict=True):
            if number >= 0:
                table = pq.read_table(verified(self.directory, parts[number]), columns=list({"row_id", *columns}))
                start = np.searchsorted(ascending, first[number])
                ids, group = table["row_id"].to_numpy(), ascending[start : start + num]
                place = np.searchsorted(ids, group)
                place = place[ids[np.minimum(place, len(ids) - 1)] == group]
                tables.append(table.take(place).select(columns))
        table = pa.concat_tables(tables)
        if table.num_rows < len(row_ids):
            raise DataError(
                f"{len(row_ids) - table.num_rows:,} of {len(row_ids):,} rows are no samples of the split {split} of "
                f"{self.directory}. Give the samples that these rows were made from."
            )
        return table.take(np.argsort(order, kind="stable"))

    def names(self, row_ids: np.ndarray, split: str) -> tuple[list[str], list[str | None]]:
        """Keys in the source and labels, where it has some, of the samples with `row_ids` (M,)."""
        rows = self.rows(row_ids, ["source", "label"], split)
        return rows["source"].to_pylist(), rows["label"].to_pylist()

    def schema(self, columns: Sequence[str]) -> pa.Schema:
        """The types of columns of the index."""
        schema = pq.read_schema(verified(self.directory, self.indexes()[0]))
        return pa.schema([schema.field(name) for name in columns])

    def sample_list(self, split: str) -> SampleList:
        """All samples of one split, ready to read."""
        return SampleList.of(self.index(split, PLACE), self.directory)

    def rejects(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of what was set aside."""
        return pq.ParquetFile(self.path(REJECTS)).iter_batches(columns=list(columns))

    def reject_examples(self, num: int) -> pa.Table:
        """The first `num` of what was set aside for each reason. Other columns than the reason are read only for these."""
        import pyarrow.compute as pc

        file = pq.ParquetFile(self.path(REJECTS))
        examples, missing = [REJECTS_SCHEMA.empty_table()], dict.fromkeys(self.statistics["rejected"], num)
        for group in range(file.num_row_groups):
            reasons = file.read_row_group(group, columns=["reason"])["reason"]
            rows = [pc.indices_nonzero(pc.equal(reasons, name)).to_numpy()[:most] for name, most in missing.items()]
            missing = {name: most - len(places) for (name, most), places in zip(missing.items(), rows, strict=True)}
            places = np.sort(np.concatenate([np.empty(0, np.uint64), *rows])).astype(np.int64)
            first = 0
            for batch in file.iter_batches(_EXAMPLE_ROWS, row_groups=[group]) if len(places) else ():
                inside = places[(places >= first) & (places < first + batch.num_rows)]
                examples.append(pa.Table.from_batches([batch]).take(inside - first))
                first += batch.num_rows
            if not any(missing.values()):
                break
        return pa.concat_tables(examples)


def shard_name(number: int) -> str:
    """The name of a shard, of its index and of what is made from it, without an ending."""
    return f"shard-{number:06d}"


def index_name(shard: str) -> str:
    """The path of the index of a shard, given by its name."""
    return f"index/{shard}.parquet"


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet, whole or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")
