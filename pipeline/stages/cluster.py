"""cluster: hierarchical k-means over the embeddings of the pool."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from curation.base import rng
from curation.base.errors import DataError
from curation.base.files import atomic_path, save_array
from curation.embeddings.source import EmbeddingSource
from curation.kmeans.config import ClusterConfig
from curation.kmeans.levels import ClusterHierarchy, HierarchyProgress, Level, LevelShare
from curation.measures.balance import imbalance, kl_from_uniform, size_entropy
from curation.measures.features import silhouette
from pipeline.artifacts.manifest import Part, read_kind
from pipeline.stages.embed import open_embeddings
from pipeline.stages.stage import Made, Work

if TYPE_CHECKING:
    from curation.base.collectives import Collectives

ROW_ID = "row_id.npy"
_ARRAYS = ("centroids", "assignment", "squared_distance", "sizes")  # the last is written last
_PER_ITEM = ("assignment", "squared_distance")
_SILHOUETTE_ROWS = 4096


@dataclass(frozen=True)
class Cluster:
    """A directory `level-T` of .npy arrays for each level, and `row_id.npy` saying which sample each row is."""

    config: ClusterConfig
    seed: int
    kind = "clusters"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.fingerprint_fields()}

    def make(self, work: Work) -> Made:
        args = (work.inputs["embeddings"], self.config, self.seed, work.out, work.scratch)
        steps_per_level = 1 + self.config.resampling_steps
        console = work.runtime.console
        with console.progress("cluster", 0, "steps") as meter:
            for event in work.runtime.ranks(cluster_rank, self.config.workers, *args, gpu=True):
                if isinstance(event, str):
                    console.say(f"  {event}")
                else:
                    note = f"level {event.level}, iteration {event.iteration}, inertia {event.inertia:,.5g}"
                    done = (event.level - 1) * steps_per_level + event.step
                    meter.move(done, len(self.config.levels) * steps_per_level, note)
        levels = saved_levels(work.out)
        parts = [Part.of(work.out, ROW_ID, len(levels[0].assignment))]
        for number, level in enumerate(levels, start=1):
            parts += [Part.of(work.out, _path(number, name), len(getattr(level, name))) for name in _ARRAYS]
        source = open_embeddings(work.inputs["embeddings"], normalize=self.config.normalize)
        separate = silhouettes(source, levels, stream=rng.key(self.seed, "silhouette"))
        statistics = [
            {
                "clusters": level.num_clusters,
                "inertia": float(level.squared_distance.sum(dtype=np.float64)),
                "size_entropy": size_entropy(level.sizes),
                "kl_from_uniform": kl_from_uniform(level.sizes),
                "imbalance": imbalance(level.sizes),
                "smallest": int(level.sizes.min()),
                "largest": int(level.sizes.max()),
                **({} if found is None else {"silhouette": found}),
            }
            for level, found in zip(levels, separate, strict=True)
        ]
        return Made(parts, {"rows": parts[0].num_rows, "levels": statistics})


def silhouettes(source: EmbeddingSource, levels: Sequence[Level], *, stream: int) -> list[float | None]:
    """The silhouette of each level on the same random rows; None if there are not even two of them to a cluster.

    `stream` is the random key. A row that is alone in its cluster counts 0: with so many clusters most of them would be.
    """
    drawn = rng.permute(stream, np.arange(min(_SILHOUETTE_ROWS, source.num_rows)), source.num_rows)
    labels = np.sort(drawn)  # below level 1 every row has its own
    rows = source.take(labels)
    result: list[float | None] = []
    for level in levels:
        labels = level.assignment[labels]
        enough = 2 * level.num_clusters <= len(rows)
        # A matrix product may differ in its last bits with the number of threads; a manifest may not.
        result.append(round(silhouette(rows, labels), 6) if enough else None)
    return result


def cluster_rank(
    embeddings: Path, config: ClusterConfig, seed: int, out: Path, scratch: Path
) -> Iterator[str | HierarchyProgress]:
    """One worker of the clustering; the levels are saved one by one. Yields what happens."""
    import torch.distributed as dist

    from curation.base.collectives import Alone, TorchCollectives
    from curation.base.journal import Journal
    from curation.kmeans.hierarchy import hierarchical_kmeans

    workers: Collectives = TorchCollectives() if dist.is_initialized() else Alone()
    source = open_embeddings(embeddings, normalize=config.normalize)
    if workers.rank == 0:
        save_array(out / ROW_ID, source.row_ids())
    done = saved_levels(out)
    levels = hierarchical_kmeans(
        source,
        config,
        rng_key=seed,
        done=done,
        collectives=workers,
        journal=Journal(scratch / "journal", workers),
    )
    number = len(done)
    for event in levels:
        if isinstance(event, LevelShare):
            number += 1
            _save_level(event, number, out, scratch, workers)
            yield f"level {number}: {event.num_clusters:,} clusters"
        else:
            yield event


def _save_level(level: LevelShare, number: int, out: Path, scratch: Path, workers: "Collectives") -> None:
    """Every worker writes what it knows of its items; the first joins the pieces. No worker ever holds them all."""
    for name in _PER_ITEM:
        save_array(scratch / _path(number, f"{name}-{workers.rank}"), getattr(level, f"local_{name}"))
    workers.gather(np.zeros(0))  # the pieces of all workers are there
    if workers.rank == 0:
        for name in _ARRAYS:
            if name not in _PER_ITEM:
                save_array(out / _path(number, name), getattr(level, name))
                continue
            pieces = [np.load(scratch / _path(number, f"{name}-{rank}"), mmap_mode="r") for rank in range(workers.size)]
            shape = (sum(map(len, pieces)),)
            with atomic_path(out / _path(number, name)) as temporary:
                joined = np.lib.format.open_memmap(temporary, "w+", dtype=pieces[0].dtype, shape=shape)
                np.concatenate(pieces, out=joined)
                joined.flush()


def _path(number: int, name: str) -> str:
    return f"level-{number}/{name}.npy"


def saved_levels(out: Path) -> list[Level]:
    """The levels saved whole in `out`, memory-mapped."""
    levels: list[Level] = []
    while (out / _path(len(levels) + 1, _ARRAYS[-1])).exists():
        arrays = {name: np.load(out / _path(len(levels) + 1, name), mmap_mode="r") for name in _ARRAYS}
        levels.append(Level(**arrays))
    return levels


def read_hierarchy(directory: Path) -> tuple[ClusterHierarchy, np.ndarray]:
    """The hierarchy in a clusters artifact, memory-mapped, and the row id of each of its rows (N,)."""
    read_kind(directory, "clusters")
    try:
        return ClusterHierarchy(tuple(saved_levels(directory))), np.load(directory / ROW_ID, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise DataError(f"The clusters in {directory} cannot be read: {error}. Delete it and cluster again.") from error
