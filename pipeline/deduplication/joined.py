"""The rows that are compared: the pool and, after it, what is held out, by the clusters they belong to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from curation.base.files import save_array
from curation.embeddings.files import EmbeddingFiles
from curation.levels import Level
from curation.sampling.draw import grouped
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.embeddings import Embeddings
from pipeline.splits import HELD_OUT, POOL

_PART_ROWS, _MAX_PARTS = 250_000, 1024


@dataclass(frozen=True)
class JoinedRows:
    """The rows of the pool and after them the held-out ones, which belong to the clusters they are nearest to."""

    embeddings: Path
    held_out: Path | None
    """Embeddings of held-out rows of the user's; None: those that the embeddings have themselves."""
    protect: bool
    """Whether held-out rows are looked at."""
    clusters: Path
    num_pool: int
    num_rows: int
    arrays: Path
    """Where the arrays are that all parts need, for each to map."""

    @classmethod
    def save(cls, embeddings: Path, held_out: Path | None, clusters: Path, arrays: Path, protect: bool) -> "JoinedRows":
        """Join the rows and write the arrays that say where each belongs, unless an earlier attempt has."""
        joined = cls(embeddings, held_out, protect, clusters, 0, 0, arrays)
        opened = Clusters.open(clusters)
        row_ids = opened.row_ids()
        if not (arrays / "row_id.npy").exists():  # written last
            level = opened.hierarchy().levels[0]
            assignment, held_out_ids = np.asarray(level.assignment), np.empty(0, np.int64)
            if files := joined._held_out_files():
                from curation.dedup.neighbours import nearest_clusters

                source = EmbeddingFiles.open(files, normalize=True)
                assignment = np.concatenate([assignment, nearest_clusters(source, level.centroids)])
                held_out_ids = source.row_ids()
            members, offsets = grouped(assignment, level.num_clusters)
            save_array(arrays / "assignment.npy", assignment)
            save_array(arrays / "members.npy", members)
            save_array(arrays / "offsets.npy", offsets)
            save_array(arrays / "row_id.npy", np.concatenate([row_ids, held_out_ids]))
        return replace(joined, num_pool=len(row_ids), num_rows=len(joined.array("row_id")))

    @property
    def num_parts(self) -> int:
        return min(-(-self.num_rows // _PART_ROWS), _MAX_PARTS)

    def source(self) -> EmbeddingFiles:
        """The embeddings of all rows, at unit length."""
        return EmbeddingFiles.open([*Embeddings.open(self.embeddings).files(POOL), *self._held_out_files()], normalize=True)

    def level(self) -> Level:
        """The finest level, of the pool alone."""
        return Clusters.open(self.clusters).hierarchy().levels[0]

    def array(self, name: str) -> np.ndarray:
        """`assignment` and `row_id` (num_rows,), or the rows by cluster: `members` (num_rows,), `offsets` (K + 1,)."""
        return np.load(self.arrays / f"{name}.npy", mmap_mode="r")

    def shares(self) -> list[int]:
        """How many rows each part has."""
        source = self.source()
        return [source.share(part, self.num_parts).num_rows for part in range(self.num_parts)]

    def cluster_ranges(self) -> np.ndarray:
        """Ranges of clusters with about equally many rows: (P + 1,) ascending."""
        offsets, num_parts = self.array("offsets"), self.num_parts
        inner = np.searchsorted(offsets[1:], offsets[-1] * np.arange(1, num_parts) // num_parts) + 1
        return np.minimum(np.concatenate([[0], inner, [len(offsets) - 1]]), len(offsets) - 1)

    def _held_out_files(self) -> Sequence[Path]:
        if not self.protect:
            return []
        if self.held_out is None:
            return Embeddings.open(self.embeddings).files(HELD_OUT)
        return Embeddings.open(self.held_out).files(POOL)


def row_lookup(row_ids: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A function from some row ids (M,), all of which are in `row_ids` (N,), to where in it they are."""
    order = np.argsort(row_ids, kind="stable")
    return lambda ids: order[np.searchsorted(row_ids, ids, sorter=order)] if len(ids) else ids
