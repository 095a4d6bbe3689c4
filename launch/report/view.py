"""What the sections of a report look at: the artifacts of a run by round, and the pictures on the page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError
from curation.kmeans.levels import ClusterHierarchy
from launch.report.charts import Sheet
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.evaluation import Evaluation
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.modalities.modality import Modality, open_modality
from pipeline.rounds.record import RunRecord
from trainers.data.samples import PLACE, SampleList
from trainers.data.shard_reader import ShardReader

T = TypeVar("T")
_READ_TOGETHER = 64
_PICTURED_ROUNDS = 2
"""The newest rounds that are pictured, beside the first."""


@dataclass(frozen=True)
class View:
    """A run as the sections of a report see it."""

    run: RunRecord
    sheet: Sheet = field(default_factory=Sheet)

    def attempt(self, function: Callable[..., T], *args: object) -> T | None:
        """`function(*args)`; if a file of the run is missing or damaged, None and a note on the page."""
        try:
            return function(*args)
        except (DataError, OSError, pa.ArrowInvalid) as error:
            if str(error) not in self.run.notes:
                self.run.notes.append(str(error))
            return None

    @property
    def samples(self) -> Samples | None:
        """The finished samples."""
        return self.run.finished(Samples).get(None)

    @cached_property
    def pictures(self) -> "Pictures":
        return Pictures(self.samples, self.sheet)

    def statistics(self, noun: type[Artifact], number: int | None) -> dict[str, Any]:
        """The statistics of a finished artifact; empty for one that is not finished."""
        artifact = self.run.finished(noun).get(number)
        return artifact.statistics if artifact else {}

    def rounds(self, *nouns: type[Artifact]) -> list[int]:
        """Numbers of the rounds in which all of these are finished."""
        numbers = [set(self.run.by_round(noun)) for noun in nouns]
        return sorted(set.intersection(*numbers))

    def pictured_rounds(self) -> list[int]:
        """The first clustered round and the newest."""
        numbers = self.rounds(Embeddings, Clusters)
        return numbers[:1] + numbers[1:][-_PICTURED_ROUNDS:]

    def scores(self) -> list[tuple[str, dict[str, Any]]]:
        """Evaluations in order, the baseline first, with what to call them."""
        finished = self.run.finished(Evaluation)
        named = [("baseline" if number is None else f"round {number}", finished[number]) for number in finished]
        return [(name, evaluation.statistics) for name, evaluation in named if evaluation.statistics]

    def baseline_name(self) -> str:
        """What to call the encoder that the run began with."""
        encoder = self.run.config.embed.encoder if self.run.config else None
        if encoder is None:
            return "the encoder it began with"
        if encoder.type == "pixels":
            return "raw pixels"
        return f"{getattr(encoder, 'model', encoder.type)}, the encoder it began with"

    def selected(self, number: int) -> np.ndarray:
        """(N,) bool: the rows of a round's clustering that it selected. A byte a row."""
        row_ids = self.run.by_round(Clusters)[number].row_ids()
        chosen = np.zeros(len(row_ids), dtype=bool)
        for ids in self.run.by_round(SelectedRows)[number].row_ids():
            chosen[np.searchsorted(row_ids, ids)] = True
        return chosen

    def selected_sizes(self, hierarchy: ClusterHierarchy, chosen: np.ndarray) -> list[np.ndarray]:
        """For each level (K,) int64: how many of the `chosen` (N,) rows lie in each cluster."""
        sizes: list[np.ndarray] = []
        for level in hierarchy.levels:
            items = level.assignment[np.flatnonzero(chosen)] if not sizes else level.assignment
            weights = None if not sizes else sizes[-1]
            sizes.append(np.bincount(items, weights=weights, minlength=level.num_clusters).astype(np.int64))
        return sizes


class Pictures:
    """Samples, read a few at a time, and their thumbnails on the sheet."""

    def __init__(self, samples: Samples | None, sheet: Sheet) -> None:
        self._samples, self._sheet = samples, sheet
        self._numbers: dict[int, int] = {}

    @property
    def modality(self) -> Modality:
        assert self._samples is not None
        return open_modality(self._samples.modality)

    def names(self, row_ids: np.ndarray, split: str) -> tuple[list[str], list[str | None]]:
        """Keys in the source and labels of the samples with `row_ids`."""
        if self._samples is None:
            raise DataError("The index of the samples is missing. Their pictures and names are left out.")
        return self._samples.names(row_ids, split)

    def of(self, row_ids: np.ndarray, split: str) -> dict[int, int]:
        """The number on the sheet of each of `row_ids` that can be read."""
        missing = np.array([row for row in np.unique(row_ids) if int(row) not in self._numbers], dtype=np.int64)
        if len(missing) and self._samples is not None:
            listed = SampleList.of(self._samples.rows(missing, PLACE, split), self._samples.directory)
            reader = ShardReader(listed, tries=1)
            for index, row in enumerate(missing.tolist()):
                if index % _READ_TOGETHER == 0:
                    reader.ahead(range(index, min(index + _READ_TOGETHER, len(missing))))
                try:
                    number = self.add(reader.read(index))
                except DataError:  # a shard was moved away: the rest of the page does without
                    continue
                if number is not None:
                    self._numbers[row] = number
        return {row: self._numbers[row] for row in map(int, row_ids) if row in self._numbers}

    def add(self, content: bytes) -> int | None:
        """Put the picture of a sample's bytes on the sheet; its number, None if there is nothing to see."""
        picture = self.modality.picture(content)
        return None if picture is None else self._sheet.add(picture)


def label_name(name: str | None) -> str:
    """A label as the page shows it."""
    return "no label" if name is None else name
