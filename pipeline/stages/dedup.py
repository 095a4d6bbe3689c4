"""dedup: samples of the pool that are near-duplicates of others, or near held-out ones."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from curation.base.errors import ConfigError
from curation.dedup.config import DedupConfig
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.duplicates import Duplicates
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.files import Scores
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples
from pipeline.deduplication.decide import decide
from pipeline.deduplication.edges import edges_part, filter_earlier_edges, missed_visits, signature_edges, visits_part
from pipeline.deduplication.joined import JoinedRows
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput

_ROWS_PER_PART = 250_000


@dataclass(frozen=True)
class Dedup(Stage):
    """Near-duplicate pairs, and which rows of the pool are dropped for which.

    Pairs of embeddings are found inside and across the finest clusters; with the input "edges", an earlier deduplication, among
    its pairs. Held-out rows are those of the input "held_out", or those of "embeddings" that a stage of ours made.
    """

    config: DedupConfig
    name = "dedup"
    makes = Duplicates
    inputs: ClassVar[Mapping[str, Input]] = {
        "embeddings": Input(Embeddings, made_into=("clusters", "edges")),
        "clusters": Input(Clusters, made_into=("edges",)),
        "samples": Input(Samples, optional=True, made_into=("embeddings",)),
        "held_out": Input(Embeddings, optional=True),
        "edges": Input(Duplicates, optional=True),
        "scores": Input(Scores, optional=True),
    }

    def settings(self) -> dict[str, Any]:
        return self.config.fingerprint_fields()

    def needs(self) -> frozenset[str]:
        return self.config.needs

    def make(self, context: StageContext) -> StageOutput:
        clusters: Clusters = context.inputs["clusters"]
        if not clusters.normalized:
            raise ConfigError("Near-duplicates are found by cosine similarity. Cluster with normalize=true first.")
        samples, scores = context.directory("samples"), context.directory("scores")
        joined: JoinedRows = context.call(
            JoinedRows.save,
            context.inputs["embeddings"].directory,
            context.directory("held_out"),
            clusters.directory,
            context.scratch / "joined",
            self.config.protect,
            on_gpu=True,
        )
        if "edges" in context.inputs:
            earlier: Duplicates = context.inputs["edges"]
            self._refuse_other_edges(context, earlier)
            edges = context.call(filter_earlier_edges, earlier.directory, self.config, context.out)
            missed = earlier.statistics["missed_visits"]
        else:
            edges, missed = self._find_edges(context, joined), missed_visits(context.scratch)
        files = [context.out / part.path for part in edges]
        dropped, counts = context.call(
            decide, files, joined, self.config, samples, scores, context.out, context.scratch, on_gpu=True
        )
        statistics = {
            "rows": joined.num_pool,
            "held_out": joined.num_rows - joined.num_pool,
            "pairs": sum(part.num_rows for part in edges),
            "missed_visits": missed,
            **counts,
            # What an earlier result may be used for again.
            "similarity": self.config.similarity,
            "hash_bits": self.config.hash_bits,
            "protect": self.config.protect,
        }
        return StageOutput([*edges, dropped], statistics)

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        pool, dim, clusters = (inputs["clusters"].rows, inputs["clusters"].dim, inputs["clusters"].clusters)
        flops = 2.0 * pool * dim * (2 * clusters + pool / clusters)
        return Estimate(pool, dim=dim, parts=2 * math.ceil(pool / _ROWS_PER_PART), num_bytes=16 * pool, flops=flops)

    def describe(self, manifest: Manifest) -> str:
        s = manifest.statistics
        return f"{s['dropped']:,} of {s['rows']:,} rows are near-duplicates, {s['pairs']:,} pairs"

    def _find_edges(self, context: StageContext, joined: JoinedRows) -> list[Part]:
        shares = joined.shares()
        firsts = [sum(shares[:index]) for index in range(len(shares))]
        context.parts(
            visits_part,
            [(index, first, num) for index, (first, num) in enumerate(zip(firsts, shares, strict=True))],
            joined,
            self.config,
            context.scratch,
            num_rows=shares,
            label="visits",
            unit="rows",
            on_gpu=True,
        )
        bounds = joined.cluster_ranges()
        edges = context.parts(
            edges_part,
            [(index, int(bounds[index]), int(bounds[index + 1])) for index in range(joined.num_parts)],
            joined,
            self.config.radius,
            context.scratch,
            context.out,
            num_rows=[int(num) for num in joined.array("offsets")[bounds[1:]] - joined.array("offsets")[bounds[:-1]]],
            label="edges",
            unit="rows",
            on_gpu=True,
        )
        samples = context.directory("samples")
        if self.config.hash_bits is not None and samples is not None:
            edges += context.call(signature_edges, joined, samples, self.config.hash_bits, context.out)
        return edges

    def _refuse_other_edges(self, context: StageContext, earlier: Duplicates) -> None:
        given = {role: opened.fingerprint for role, opened in context.inputs.items() if role not in ("edges", "scores")}
        if given != {role: parent for role, parent in earlier.manifest.parents.items() if role != "scores"}:
            raise ConfigError(f"{earlier.directory} was made from other {' or '.join(given)}. Leave out --edges.")
        before, config = earlier.statistics, self.config
        is_looser = config.similarity < before["similarity"] or (config.protect and not before["protect"])
        if is_looser or (config.hash_bits or 0) > (before["hash_bits"] or 0):
            raise ConfigError(
                f"{earlier.directory} has the pairs for similarity={before['similarity']} hash_bits={before['hash_bits']} "
                f"protect={before['protect']} and can only be used for fewer. Raise similarity, lower hash_bits, or leave out "
                "--edges."
            )
