"""Duplicates: pairs of samples that are near-duplicates, and which rows of the pool are dropped for which."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.files import atomic_path
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Part

DUPLICATES = "duplicates.parquet"
_EDGES_PREFIX = "edges-"
EDGES_SCHEMA = pa.schema(
    {
        "row_id": pa.int64(),
        "other_row_id": pa.int64(),
        "held_out": pa.bool_(),  # whether the other row is
        "similarity": pa.float32(),  # null where only the hashes tell
        "bits": pa.int8(),  # in which perceptual hashes differ; null where the embeddings tell
        "same": pa.bool_(),  # equal embeddings; n equal rows have n - 1 such edges, to the first of them
    }
)
_OF_A_PAIR = ["held_out", "similarity", "bits"]
DROPPED_SCHEMA = pa.schema({"row_id": pa.int64(), "kept_row_id": pa.int64(), "reason": pa.string()})


@dataclass(frozen=True)
class Duplicates(Artifact):
    """`edges-*.parquet`: near-duplicate pairs. `duplicates.parquet`: each dropped row, the row kept for it, and the reason."""

    kind = "duplicates"

    def dropped_row_ids(self) -> np.ndarray:
        """(M,) int64: the rows that are dropped, ascending."""
        return pq.read_table(self.path(DUPLICATES), columns=["row_id"])["row_id"].to_numpy()

    def dropped(self) -> pa.Table:
        """The table of dropped rows."""
        return pq.read_table(self.path(DUPLICATES))

    def least_alike(self, num: int) -> pa.Table:
        """The `num` dropped rows of each reason that are least like the row kept for them.

        Those are the pairs of the least similarity, then, of pairs that only signatures show, those of the most bits. Columns:
        those of the dropped rows, and `held_out`, `similarity` and `bits` of the pair. Streams the pairs.
        """
        import pyarrow.compute as pc

        dropped = self.dropped().combine_chunks()
        schema = pa.schema([*DROPPED_SCHEMA, *(EDGES_SCHEMA.field(name) for name in _OF_A_PAIR)])
        pairs = schema.empty_table()
        for path in self.edges() if dropped.num_rows else []:
            for batch in pq.ParquetFile(path).iter_batches():
                table = pa.concat_tables([pairs, *_dropped_pairs(dropped, pa.Table.from_batches([batch]), schema)])
                table = table.sort_by([("similarity", "ascending"), ("bits", "descending")])
                reasons = sorted(set(pc.unique(table["reason"]).to_pylist()))
                pairs = pa.concat_tables(
                    [pairs[:0], *(table.filter(pc.equal(table["reason"], name))[:num] for name in reasons)]
                )
        return pairs

    def edges(self) -> list[Path]:
        """The files of pairs."""
        return [self.path(part.path) for part in self.manifest.parts if part.path.startswith(_EDGES_PREFIX)]


def edges_name(which: int | str) -> str:
    """The file name of pairs: of a numbered range of clusters, or those found by other means."""
    return f"{_EDGES_PREFIX}{which:06d}.parquet" if isinstance(which, int) else f"{_EDGES_PREFIX}{which}.parquet"


def write_edges(out: Path, name: str, tables: Iterable[pa.Table]) -> Part:
    """Write pairs as one part, a table at a time."""
    num = 0
    with atomic_path(out / name) as temporary, pq.ParquetWriter(temporary, EDGES_SCHEMA, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            num += table.num_rows
    return Part.describe(out, name, num)


def write_dropped(out: Path, dropped: pa.Table) -> Part:
    """Write the table of dropped rows."""
    with atomic_path(out / DUPLICATES) as temporary:
        pq.write_table(dropped, temporary, compression="zstd")
    return Part.describe(out, DUPLICATES, dropped.num_rows)


def _dropped_pairs(dropped: pa.Table, edges: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    """The edges between a dropped row and the row kept for it, with the dropped row first."""
    row_ids, kept_row_ids = dropped["row_id"].to_numpy(), dropped["kept_row_id"].to_numpy()
    ends = edges["row_id"].to_numpy(), edges["other_row_id"].to_numpy()
    for first, second in (ends, ends[::-1]):
        place = np.minimum(np.searchsorted(row_ids, first), len(row_ids) - 1)
        matches = np.flatnonzero((row_ids[place] == first) & (kept_row_ids[place] == second))
        columns = [*dropped.take(place[matches]).columns, *edges.take(matches).select(_OF_A_PAIR).columns]
        yield pa.table(columns, schema=schema)
