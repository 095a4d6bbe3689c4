"""Clusters: the levels of a hierarchy over the embeddings of a pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curation.base.files import atomic_path, save_array
from curation.levels import ClusterHierarchy, Level, LevelShare
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.manifest import Part

ROW_ID = "row_id.npy"
_ARRAYS = ("centroids", "assignment", "squared_distance", "sizes")  # the last is written last
_PER_ITEM = ("assignment", "squared_distance")


@dataclass(frozen=True)
class Clusters(Artifact):
    """A directory `level-T` of .npy arrays for each level, and `row_id.npy` saying which sample each row is."""

    kind = "clusters"

    @property
    def normalized(self) -> bool:
        """Whether embeddings were scaled to unit length before they were clustered."""
        return bool(self.statistics["normalized"])

    def hierarchy(self) -> ClusterHierarchy:
        """The levels, memory-mapped."""
        for part in self.manifest.parts:
            self.path(part.path)
        return ClusterHierarchy(tuple(saved_levels(self.directory)))

    def row_ids(self) -> np.ndarray:
        """(N,) int64: the row id of each row of the hierarchy, memory-mapped."""
        return np.load(self.path(ROW_ID), mmap_mode="r")

    def sizes(self, level: int) -> np.ndarray:
        """(K,) int64: the rows in each cluster of a level, counted from 1."""
        return np.load(self.path(_path(level, "sizes")), mmap_mode="r")


def saved_levels(out: Path) -> list[Level]:
    """The levels saved whole in `out`, memory-mapped."""
    levels: list[Level] = []
    while (out / _path(len(levels) + 1, _ARRAYS[-1])).exists():
        arrays = {name: np.load(out / _path(len(levels) + 1, name), mmap_mode="r") for name in _ARRAYS}
        levels.append(Level(**arrays))
    return levels


def parts_of_levels(out: Path, levels: list[Level], num_rows: int) -> Iterator[Part]:
    """The parts of a hierarchy that is saved in `out`."""
    yield Part.describe(out, ROW_ID, num_rows)
    for number, level in enumerate(levels, start=1):
        for name in _ARRAYS:
            yield Part.describe(out, _path(number, name), len(getattr(level, name)))


def save_row_ids(out: Path, row_ids: np.ndarray) -> None:
    """Write the row ids (N,) of a clustering."""
    save_array(out / ROW_ID, row_ids)


def save_share(level: LevelShare, number: int, scratch: Path, worker: int) -> None:
    """Write what one worker knows of its items of a level."""
    for name in _PER_ITEM:
        save_array(scratch / _path(number, f"{name}-{worker}"), getattr(level, f"local_{name}"))


def join_shares(level: LevelShare, number: int, out: Path, scratch: Path, num_workers: int) -> None:
    """Write a level whole from the shares of all workers, which are never all in memory."""
    for name in _ARRAYS:
        if name not in _PER_ITEM:
            save_array(out / _path(number, name), getattr(level, name))
            continue
        shares = [np.load(scratch / _path(number, f"{name}-{worker}"), mmap_mode="r") for worker in range(num_workers)]
        with atomic_path(out / _path(number, name)) as temporary:
            joined = np.lib.format.open_memmap(temporary, "w+", dtype=shares[0].dtype, shape=(sum(map(len, shares)),))
            np.concatenate(shares, out=joined)
            joined.flush()


def _path(number: int, name: str) -> str:
    return f"level-{number}/{name}.npy"
