"""Selection: the rows of a pool to train on, and the list that a training reads them by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.errors import DataError
from pipeline.artifacts.artifact import Artifact

SELECTION, TRAINING = "selection.parquet", "training.parquet"


@dataclass(frozen=True)
class SelectedRows(Artifact):
    """`selection.parquet`: row_id, repeats, reason and perhaps weight.

    `training.parquet`, where the samples were known: the same rows with the place of their bytes and their pseudo-labels.
    """

    kind = "selection"
    layout = 2

    def training_list(self) -> Path:
        """The Parquet file that a training reads. Raises DataError if the selection was made without samples."""
        if not any(part.path == TRAINING for part in self.manifest.parts):
            raise DataError(f"{self.directory} has no training list. Select again with --samples.")
        return self.path(TRAINING)

    def row_ids(self) -> Iterator[np.ndarray]:
        """The selected row ids (S,), ascending, block by block."""
        for batch in pq.ParquetFile(self.path(SELECTION)).iter_batches(columns=["row_id"]):
            yield batch.column("row_id").to_numpy()

    def training_columns(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Columns of the training list, block by block."""
        return pq.ParquetFile(self.training_list()).iter_batches(columns=list(columns))

    @property
    def label_columns(self) -> list[str]:
        """The label columns of the training list."""
        return list(self.statistics["balance"])
