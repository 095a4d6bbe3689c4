"""Labels: pseudo-labels of every row of a pool, column by column."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.files import atomic_path
from curation.labelers.labels import Block, Labels
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Part

LABELS = "labels.parquet"


@dataclass(frozen=True)
class PseudoLabels(Artifact):
    """`labels.parquet`: row_id and a column a label, of the whole pool, in the order of the clustering."""

    kind = "labels"

    @property
    def num_classes(self) -> dict[str, int]:
        """The number of classes of each label column."""
        return {name: int(num) for name, num in self.statistics["classes"].items()}

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the table, block by block."""
        return pq.ParquetFile(self.path(LABELS)).iter_batches(columns=list(columns), batch_size=1 << 18)

    def labels(self) -> Labels:
        """The labels in the order of the clustering."""
        return Labels(num_classes=self.num_classes, blocks=self._blocks)

    def _blocks(self) -> Iterator[Block]:
        first, names = 0, list(self.num_classes)
        for batch in self.batches(names):
            yield first, {name: batch.column(name).to_numpy() for name in names}
            first += batch.num_rows


def write_labels(out: Path, labels: Labels, row_ids: np.ndarray) -> Part:
    """Write the labels of a pool with `row_ids` (N,), a block at a time."""
    schema = pa.schema({"row_id": pa.int64(), **{name: pa.int32() for name in labels.num_classes}})
    write_batches(out / LABELS, schema, _batches(schema, labels, row_ids))
    return Part.describe(out, LABELS, len(row_ids))


def _batches(schema: pa.Schema, labels: Labels, row_ids: np.ndarray) -> Iterator[pa.RecordBatch]:
    for first, columns in labels.blocks():
        num = len(next(iter(columns.values())))
        yield pa.record_batch([row_ids[first : first + num], *columns.values()], schema=schema)


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> int:
    """Write a Parquet file a batch at a time, whole or not at all; the number of rows."""
    num = 0
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)
            num += batch.num_rows
    return num
