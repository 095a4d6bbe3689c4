"""select: which samples of the pool the next training sees, and which cluster each belongs to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import rng
from curation.base.errors import DataError
from curation.base.files import atomic_path
from curation.embeddings.files import EmbeddingFiles
from curation.embeddings.source import ArraySource, EmbeddingSource
from curation.measures.balance import share_empty, total_variation_from_uniform
from curation.measures.features import coverage, vendi_score
from curation.selectors.config import SelectConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool, Selection
from pipeline.artifacts.manifest import DUPLICATES, Part, read_kind
from pipeline.sources.folder import POOL, QUERY
from pipeline.stages.cluster import read_hierarchy
from pipeline.stages.embed import embedding_files, open_embeddings, read_scores
from pipeline.stages.shard import read_index
from pipeline.stages.stage import Made, Work
from trainers.data.samples import PLACE, ROWS_PER_EPOCH

SELECTION, TRAINING, PSEUDO_LABELS = "selection.parquet", "training.parquet", "pseudo-labels.parquet"
_VENDI_ROWS = 10_000


@dataclass(frozen=True)
class Select:
    """Tables: the selection (row_id, repeats, reason); the pseudo-labels of the whole pool (row_id, level_1, …); and, with an
    input "samples", the training list, which has what a loader needs to stream the selection from the shards.

    With an input "duplicates", rows that go for others are left out before anything is selected. Selectors may look at inputs
    "embeddings", "queries" (else those of the embeddings' samples that are queries) and "scores".
    """

    config: SelectConfig
    seed: int
    kind = "selection"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.fingerprint_fields()}

    def make(self, work: Work) -> Made:
        pool, row_ids = _pool(work)
        hierarchy, embeddings = pool.hierarchy, pool.embeddings
        if pool.num_available == 0:
            raise DataError(
                f"All {pool.num_rows:,} rows say what others or held-out ones say, by {work.inputs['duplicates']}: to its "
                "embeddings they are alike. Raise dedup.similarity, or use an encoder that tells them apart."
            )
        selection = select(self.config, pool, rng_key=self.seed)

        depth = len(hierarchy.levels)
        labels = {f"level_{level}": hierarchy.labels(level) for level in range(1, depth + 1)}
        pool = pa.table({"row_id": row_ids, **{name: pa.array(values) for name, values in labels.items()}})
        chosen = pa.table(
            {
                "row_id": row_ids[selection.rows],
                "repeats": selection.repeats,
                "reason": pa.array([selection.reason] * len(selection.rows)),
            }
        )
        if selection.weights is not None:
            chosen = chosen.append_column("weight", pa.array(selection.weights))
        if selection.per_epoch is not None:
            chosen = chosen.replace_schema_metadata({ROWS_PER_EPOCH: str(selection.per_epoch)})
        tables = {SELECTION: chosen, PSEUDO_LABELS: pool}
        if samples := work.inputs.get("samples"):
            index = read_index(samples, POOL, PLACE)
            place = np.searchsorted(index["row_id"].to_numpy(), row_ids[selection.rows])
            training = index.take(place).replace_schema_metadata(chosen.schema.metadata)
            for name in chosen.column_names[1:]:
                training = training.append_column(name, chosen[name])
            for name in labels:
                training = training.append_column(name, pool[name].take(selection.rows))
            tables[TRAINING] = training
        parts = []
        for name, table in tables.items():
            with atomic_path(work.out / name) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            parts.append(Part.of(work.out, name, table.num_rows))
        statistics = self._statistics(selection, labels)
        if embeddings is not None and len(selection.rows):
            statistics |= _spread(embeddings, selection.rows, self.seed)
        return Made(parts, statistics)

    @staticmethod
    def _statistics(selection: Selection, labels: dict[str, np.ndarray]) -> dict[str, Any]:
        balance = {}
        for name, values in labels.items():
            num = int(values.max()) + 1
            chosen = np.bincount(values[selection.rows], minlength=num)
            balance[name] = {
                "tv_pool": total_variation_from_uniform(np.bincount(values, minlength=num)),
                "tv_selected": total_variation_from_uniform(chosen),
                "covered": 1 - share_empty(chosen),
            }
        return {"reason": selection.reason, **selection.counts, "cluster_balance": balance}


def _spread(embeddings: EmbeddingSource, selected: np.ndarray, seed: int) -> dict[str, Any]:
    """How near the selected rows are to all others, and how unlike they are, beside as many rows drawn at random."""
    num = min(len(selected), _VENDI_ROWS)
    drawn = {
        "selected": selected[rng.permute(rng.key(seed, "vendi selected"), np.arange(num), len(selected))],
        "pool": rng.permute(rng.key(seed, "vendi pool"), np.arange(num), embeddings.num_rows),
    }
    # A matrix product may differ in its last bits with the number of threads; a manifest may not.
    unlike = {of: round(vendi_score(ArraySource(embeddings.take(np.sort(rows)))), 4) for of, rows in drawn.items()}
    found = coverage(embeddings, selected, rng_key=rng.key(seed, "coverage"))
    return {"distance_to_selected": found._asdict(), "vendi": unlike}


def _pool(work: Work) -> tuple[Pool, np.ndarray]:
    """What there is to choose from, and the row id (N,) of each row of it."""
    clusters = work.inputs["clusters"]
    hierarchy, row_ids = read_hierarchy(clusters)
    normalize = read_kind(clusters, "clusters").settings["normalize"]
    available = None
    if duplicates := work.inputs.get("duplicates"):
        read_kind(duplicates, "duplicates")
        available = ~np.isin(row_ids, pq.read_table(duplicates / DUPLICATES)["row_id"].to_numpy())
    embeddings = queries = None
    if place := work.inputs.get("embeddings"):
        embeddings = open_embeddings(place, normalize=normalize)
        if embeddings.num_rows != len(row_ids):
            raise DataError(f"{place} has {embeddings.num_rows:,} rows, {clusters} {len(row_ids):,}: these were not clustered.")
        if examples := embedding_files(place, QUERY):
            queries = EmbeddingFiles.open(examples, normalize=normalize)
    if place := work.inputs.get("queries"):
        queries = open_embeddings(place, normalize=normalize)
    scores = read_scores(work.inputs["scores"], len(row_ids)) if "scores" in work.inputs else None
    pool = Pool(hierarchy=hierarchy, available=available, embeddings=embeddings, queries=queries, scores=scores)
    return pool, row_ids
