"""cluster: hierarchical k-means over the embeddings of the pool."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from curation.base import rng
from curation.kmeans.config import ClusterConfig
from curation.kmeans.cost import costs
from curation.levels import HierarchyProgress, LevelShare
from pipeline.artifacts.clusters import (
    Clusters,
    join_shares,
    parts_of_levels,
    save_row_ids,
    save_share,
    saved_levels,
)
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.manifest import Manifest
from pipeline.runtime.executor import fixed_number_of_ranks
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput

if TYPE_CHECKING:
    from curation.base.collectives import Collectives

_SILHOUETTE_ROWS = 4096


@dataclass(frozen=True)
class Cluster(Stage):
    """The levels of a hierarchy, from the finest."""

    config: ClusterConfig
    seed: int
    name = "cluster"
    makes = Clusters
    inputs: ClassVar[Mapping[str, Input]] = {"embeddings": Input(Embeddings)}

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.fingerprint_fields()}

    def make(self, context: StageContext) -> StageOutput:
        embeddings, executor = context.inputs["embeddings"].directory, context.executor
        num_workers = fixed_number_of_ranks(self.config.workers, executor, context.resources)
        args = (embeddings, self.config, self.seed, context.out, context.scratch)
        steps_per_level = 1 + self.config.resampling_steps
        with executor.console.progress("cluster", 0, "steps") as meter:
            for event in context.ranks(cluster_rank, num_workers, *args):
                if isinstance(event, str):
                    executor.console.say(f"  {event}")
                else:
                    note = f"level {event.level}, iteration {event.iteration}, inertia {event.inertia:,.5g}"
                    done = (event.level - 1) * steps_per_level + event.step
                    meter.move(done, len(self.config.levels) * steps_per_level, note)
        measured = context.call(measure_levels, embeddings, self.config.normalize, self.seed, context.out)
        levels = saved_levels(context.out)
        num_rows = len(levels[0].assignment)
        parts = list(parts_of_levels(context.out, levels, num_rows))
        return StageOutput(parts, {"rows": num_rows, "normalized": self.config.normalize, "levels": measured})

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        embeddings, levels = inputs["embeddings"], self.config.levels
        num_bytes = 4 * embeddings.dim * sum(levels) + 8 * (embeddings.rows + sum(levels[:-1]))
        flops = sum(level.flops for level in costs(self.config, embeddings.rows, embeddings.dim))
        return Estimate(
            embeddings.rows,
            embeddings.held_out,
            embeddings.dim,
            clusters=levels[0],
            parts=1 + 4 * len(levels),
            num_bytes=num_bytes,
            flops=flops,
        )

    def describe(self, manifest: Manifest) -> str:
        s = manifest.statistics
        return f"{s['rows']:,} rows → " + " → ".join(f"{level['clusters']:,}" for level in s["levels"])


def measure_levels(embeddings: Path, normalize: bool, seed: int, out: Path) -> list[dict[str, Any]]:
    """How even, how tight and how well apart the clusters of each level are."""
    from curation.measures.balance import imbalance, kl_from_uniform, size_entropy
    from curation.measures.levels import silhouettes

    levels = saved_levels(out)
    source = Embeddings.open(embeddings).pool(normalize=normalize)
    drawn = rng.permute(rng.key(seed, "silhouette"), np.arange(min(_SILHOUETTE_ROWS, source.num_rows)), source.num_rows)
    apart = silhouettes(source, levels, np.sort(drawn))
    return [
        {
            "clusters": level.num_clusters,
            "inertia": float(level.squared_distance.sum(dtype=np.float64)),
            "size_entropy": size_entropy(level.sizes),
            "kl_from_uniform": kl_from_uniform(level.sizes),
            "imbalance": imbalance(level.sizes),
            "smallest": int(level.sizes.min()),
            "largest": int(level.sizes.max()),
            # A matrix product may differ in its last bits with the number of threads; a manifest may not.
            **({} if score is None else {"silhouette": round(score, 6)}),
        }
        for level, score in zip(levels, apart, strict=True)
    ]


def cluster_rank(
    embeddings: Path, config: ClusterConfig, seed: int, out: Path, scratch: Path
) -> Iterator[str | HierarchyProgress]:
    """One worker of the clustering; the levels are saved one by one. Yields what happens."""
    import torch.distributed as dist

    from curation.base.collectives import Alone, TorchCollectives
    from curation.base.journal import Journal
    from curation.kmeans.hierarchy import hierarchical_kmeans

    workers: Collectives = TorchCollectives() if dist.is_initialized() else Alone()
    opened = Embeddings.open(embeddings)
    opened.verify(workers.rank, workers.size)
    source = opened.pool(normalize=config.normalize)
    if workers.rank == 0:
        save_row_ids(out, source.row_ids())
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
            save_share(event, number, scratch, workers.rank)
            workers.gather(np.zeros(0))  # the shares of all workers are there
            if workers.rank == 0:
                join_shares(event, number, out, scratch, workers.size)
            yield f"level {number}: {event.num_clusters:,} clusters"
        else:
            yield event
