"""cluster: hierarchical k-means over the embeddings of the pool."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curation.collectives import Alone, Collectives, TorchCollectives
from curation.config import ClusterConfig
from curation.errors import DataError
from curation.files import atomic_path
from curation.hierarchy import ClusterHierarchy, Level, hierarchical_kmeans
from curation.quality import size_entropy
from pipeline.artifacts import Part, read_kind
from pipeline.embed import ArrowSource
from pipeline.stage import Made, Work

ROW_ID = "row_id.npy"
_ARRAYS = ("centroids", "assignment", "squared_distance", "sizes")  # the last is written last


@dataclass(frozen=True)
class Cluster:
    """A directory `level-T` of .npy arrays for each level, and `row_id.npy` saying which sample each row is."""

    config: ClusterConfig
    seed: int
    kind = "clusters"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.deciding()}

    def make(self, work: Work) -> Made:
        args = (work.inputs["embeddings"], self.config, self.seed, work.out)
        for text in work.runtime.ranks(cluster_rank, self.config.workers, *args, gpu=False):
            work.runtime.console.say(f"  {text}")
        levels = saved_levels(work.out)
        parts = [Part.of(work.out, ROW_ID, len(levels[0].assignment))]
        for number, level in enumerate(levels, start=1):
            parts += [Part.of(work.out, _path(number, name), len(getattr(level, name))) for name in _ARRAYS]
        statistics = [
            {
                "clusters": level.num_clusters,
                "inertia": float(level.squared_distance.sum(dtype=np.float64)),
                "size_entropy": size_entropy(level.sizes),
                "smallest": int(level.sizes.min()),
                "largest": int(level.sizes.max()),
            }
            for level in levels
        ]
        return Made(parts, {"rows": parts[0].num_rows, "levels": statistics})


def cluster_rank(embeddings: Path, config: ClusterConfig, seed: int, out: Path) -> Iterator[str]:
    """One worker of the clustering; rank 0 saves each level when it is done. Yields what happened."""
    import torch.distributed as dist

    workers: Collectives = TorchCollectives() if dist.is_initialized() else Alone()
    source = ArrowSource.open(embeddings, normalize=config.normalize)
    if workers.rank == 0:
        _save(out / ROW_ID, source.row_ids())
    done = saved_levels(out)
    levels = hierarchical_kmeans(
        source,
        config.levels,
        stream=seed,
        resampling_steps=config.resampling_steps,
        max_iterations=config.max_iterations,
        done=done,
        collectives=workers,
    )
    for number, level in enumerate(levels, start=len(done) + 1):
        if workers.rank == 0:
            for name in _ARRAYS:
                _save(out / _path(number, name), getattr(level, name))
        yield f"level {number}: {level.num_clusters:,} clusters"


def _path(number: int, name: str) -> str:
    return f"level-{number}/{name}.npy"


def saved_levels(out: Path) -> list[Level]:
    """The levels saved whole in `out`, memory-mapped."""
    levels: list[Level] = []
    while (out / _path(len(levels) + 1, _ARRAYS[-1])).exists():
        arrays = {name: np.load(out / _path(len(levels) + 1, name), mmap_mode="r") for name in _ARRAYS}
        levels.append(Level(**arrays))
    return levels


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)


def read_hierarchy(directory: Path) -> tuple[ClusterHierarchy, np.ndarray]:
    """The hierarchy in a clusters artifact, memory-mapped, and the row id of each of its rows (N,)."""
    read_kind(directory, "clusters")
    try:
        return ClusterHierarchy(tuple(saved_levels(directory))), np.load(directory / ROW_ID)
    except (OSError, ValueError) as error:
        raise DataError(f"The clusters in {directory} cannot be read: {error}. Delete it and cluster again.") from error
