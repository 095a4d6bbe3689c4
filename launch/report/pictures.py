"""The pictures of samples on the page."""

import numpy as np

from curation.base.errors import DataError
from launch.report.sheet import Sheet
from pipeline.artifacts.samples import Samples
from pipeline.modalities.modality import Modality
from trainers.data.samples import PLACE, SampleList
from trainers.data.shard_reader import ShardReader

_READ_TOGETHER = 64
"""Samples of a store that are fetched at once."""


class Pictures:
    """Samples, read a few at a time, and their thumbnails on the sheet."""

    def __init__(self, samples: Samples | None, modality: Modality | None, sheet: Sheet) -> None:
        """Without `samples` or `modality`, which cannot be read then, there are no pictures."""
        self._samples, self._modality, self._sheet = samples, modality, sheet
        self._numbers: dict[int, int] = {}
        """By row id, the number on the sheet."""

    def of(self, row_ids: np.ndarray, split: str) -> dict[int, int]:
        """The number on the sheet of each of `row_ids` (M,) that can be read, in their order."""
        missing = np.array([row_id for row_id in np.unique(row_ids) if int(row_id) not in self._numbers], dtype=np.int64)
        if len(missing) and self._samples is not None and self._modality is not None:
            self._read(missing, SampleList.of(self._samples.rows(missing, PLACE, split), self._samples.directory))
        return {row_id: self._numbers[row_id] for row_id in map(int, row_ids) if row_id in self._numbers}

    def add(self, content: bytes) -> int | None:
        """Put the picture of a sample's bytes on the sheet; its number, None if there is nothing to see."""
        picture = self._modality.picture(content) if self._modality is not None else None
        return None if picture is None else self._sheet.add(picture)

    def _read(self, row_ids: np.ndarray, listed: SampleList) -> None:
        reader = ShardReader(listed, tries=1)
        for index, row_id in enumerate(row_ids.tolist()):
            if index % _READ_TOGETHER == 0:
                reader.ahead(range(index, min(index + _READ_TOGETHER, len(row_ids))))
            try:
                number = self.add(reader.read(index))
            except DataError:  # a shard was moved away or damaged: the rest of the page does without
                continue
            if number is not None:
                self._numbers[row_id] = number
