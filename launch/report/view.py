"""What the sections of a report look at: the artifacts of a run by round, and the pictures on the page."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError
from curation.kmeans.levels import ClusterHierarchy
from launch.report.pictures import Pictures
from launch.report.sheet import Sheet
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.evaluation import Evaluation
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.modalities.modality import open_modality
from pipeline.rounds.record import RunRecord

T = TypeVar("T")
_PICTURED_ROUNDS = 2
"""The newest rounds that are pictured, beside the first."""
_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class Evenness:
    """How evenly the groups of a pool are filled, before and after a selection."""

    groups: str
    """What is filled, such as "classes"."""
    tv_pool: float
    """Total variation distance from an even spread: 0 is even."""
    tv_selected: float
    covered: float | None = None
    """The share of the groups of which something is selected."""


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

    @cached_property
    def finished(self) -> list[str]:
        """The names of the finished steps."""
        return [step.name for step in self.run.steps if step.manifest]

    @cached_property
    def samples(self) -> Samples | None:
        """The finished samples."""
        return self.run.finished(Samples).get(None)

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures of the samples."""
        modality = self.attempt(open_modality, self.samples.modality) if self.samples else None
        return Pictures(self.samples, modality, self.sheet)

    def statistics(self, noun: type[Artifact], number: int | None) -> dict[str, Any]:
        """The statistics of a finished artifact of a round, or, with None, outside of rounds; empty if there is none."""
        artifact = self.run.finished(noun).get(number)
        return artifact.statistics if artifact else {}

    def rounds(self, *nouns: type[Artifact]) -> list[int]:
        """Numbers of the rounds in which all of these are finished."""
        return sorted(set.intersection(*(set(self.run.by_round(noun)) for noun in nouns)))

    def pictured_rounds(self) -> list[int]:
        """The first clustered round and the newest."""
        numbers = self.rounds(Embeddings, Clusters)
        return numbers[:1] + numbers[1:][-_PICTURED_ROUNDS:]

    def baseline(self) -> dict[str, Any]:
        """The scores of the encoder that the run began with; empty if they are not measured."""
        return self.statistics(Evaluation, None)

    def scores(self) -> dict[int, dict[str, Any]]:
        """The scores of the encoders that were trained, by round."""
        return {number: self.statistics(Evaluation, number) for number in self.rounds(Evaluation)}

    def baseline_name(self) -> str:
        """What to call the encoder that the run began with."""
        encoder = self.run.config.for_round(0).embed.encoder if self.run.config else None
        if encoder is None:
            return "the encoder it began with"
        if encoder.type == "pixels":
            return "raw pixels"
        return f"{getattr(encoder, 'model', encoder.type)}, the encoder it began with"

    def class_evenness(self, number: int) -> Evenness | None:
        """How even the classes are in a round; None if it is not evaluated, or there are no labels."""
        measured = self.statistics(Evaluation, number).get("class_balance")
        return Evenness("classes", measured["tv_pool"], measured["tv_selected"]) if measured else None

    def cluster_evenness(self, number: int) -> list[Evenness]:
        """How even the clusters of each level are in a round that has selected."""
        levels = self.statistics(SelectedRows, number)["balance"].values()
        return [
            Evenness(f"level-{depth} clusters", measured["tv_pool"], measured["tv_selected"], measured.get("covered"))
            for depth, measured in enumerate(levels, start=1)
        ]

    def selected(self, number: int) -> np.ndarray:
        """(N,) bool: the rows of a round's clustering that it selected. A byte a row.

        Raises DataError if it selected others.
        """
        clusters, selection = self.run.by_round(Clusters)[number], self.run.by_round(SelectedRows)[number]
        row_ids = clusters.row_ids()
        is_selected = np.zeros(len(row_ids), dtype=bool)
        for ids in selection.row_ids():
            rows = np.minimum(np.searchsorted(row_ids, ids), len(row_ids) - 1)
            if not np.array_equal(row_ids[rows], ids):
                raise DataError(f"{selection.directory} has rows that are not in {clusters.directory}. Select again.")
            is_selected[rows] = True
        return is_selected

    def selected_sizes(self, hierarchy: ClusterHierarchy, is_selected: np.ndarray) -> list[np.ndarray]:
        """(K,) int64 for each level: how many of the selected rows, `is_selected` (N,), lie in each cluster."""
        first = hierarchy.levels[0]
        sizes = [np.zeros(first.num_clusters, dtype=np.int64)]
        for start in range(0, len(is_selected), _BLOCK_ROWS):
            block = slice(start, start + _BLOCK_ROWS)
            sizes[0] += np.bincount(first.assignment[block][is_selected[block]], minlength=first.num_clusters)
        for level in hierarchy.levels[1:]:
            counts = np.bincount(level.assignment, weights=sizes[-1], minlength=level.num_clusters)
            sizes.append(counts.astype(np.int64))
        return sizes


def round_name(number: int) -> str:
    """A round as charts and sentences call it."""
    return f"round {number}"


def label_name(name: str | None) -> str:
    """A label as the page shows it."""
    return "no label" if name is None else name
