"""select: which samples of the pool the next training sees."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from curation.base import rng
from curation.base.errors import ConfigError, DataError
from curation.embeddings.source import ArraySource, EmbeddingSource
from curation.labelers.config import ClustersLabelerConfig
from curation.labelers.labels import Labels, label
from curation.levels import ClusterHierarchy
from curation.measures.balance import share_empty, total_variation_from_uniform
from curation.measures.features import coverage, vendi_score
from curation.selectors.config import SelectConfig
from curation.selectors.selection import Pool, Selection
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.duplicates import Duplicates
from pipeline.artifacts.embeddings import Embeddings
from pipeline.artifacts.files import Scores
from pipeline.artifacts.labels import PseudoLabels, write_batches
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples, index_schema
from pipeline.artifacts.selection import SELECTION, TRAINING, SelectedRows
from pipeline.splits import POOL, QUERY
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput
from trainers.data.samples import PLACE, ROWS_PER_EPOCH

_VENDI_ROWS = 10_000
_BLOCK_ROWS = 1 << 18
_INDEX = index_schema(pa.schema([]))


@dataclass(frozen=True)
class Select(Stage):
    """The selected rows; with the input "samples" also the training list, which has what a loader needs to stream
    them from the shards, and the pseudo-labels of the input "labels", else the clusters.

    With the input "duplicates", dropped rows are left out before anything is selected.
    """

    config: SelectConfig
    seed: int
    name = "select"
    makes = SelectedRows
    inputs: ClassVar[Mapping[str, Input]] = {
        "clusters": Input(Clusters, made_into=("duplicates", "labels")),
        "samples": Input(Samples, optional=True, made_into=("clusters", "duplicates", "labels")),
        "labels": Input(PseudoLabels, optional=True),
        "duplicates": Input(Duplicates, optional=True),
        "embeddings": Input(Embeddings, optional=True, made_into=("clusters",)),
        "queries": Input(Embeddings, optional=True),
        "scores": Input(Scores, optional=True),
    }

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, "strategy": self.config.strategy, **self.config.fingerprint_fields()}

    def needs(self) -> frozenset[str]:
        return self.config.needs - {"queries"}  # the embeddings may have a split of them

    def make(self, context: StageContext) -> StageOutput:
        directories = {role: opened.directory for role, opened in context.inputs.items()}
        parts, statistics = context.call(select_rows, self.config, self.seed, directories, context.out, on_gpu=True)
        return StageOutput(parts, statistics)

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        pool = inputs["clusters"].rows
        chosen = self.config.rows(pool)
        return Estimate(chosen, inputs["clusters"].held_out, parts=2, num_bytes=64 * chosen)

    def describe(self, manifest: Manifest) -> str:
        return f"{manifest.statistics['selected']:,} of {manifest.statistics['pool']:,} samples"


def select_rows(
    config: SelectConfig, seed: int, directories: Mapping[str, Path], out: Path
) -> tuple[list[Part], dict[str, Any]]:
    """Write the selection and, where samples and labels are given, the training list; the parts, and what to tell of them."""
    from curation.selectors.select import select

    clusters = Clusters.open(directories["clusters"])
    row_ids = clusters.row_ids()
    pool = _pool(config, clusters, row_ids, directories)
    if pool.num_available == 0:
        raise DataError(
            f"All {pool.num_rows:,} rows are near-duplicates of others or of held-out ones, by {directories['duplicates']}: to "
            "its embeddings they are alike. Raise dedup.similarity, or use an encoder that tells them apart."
        )
    selection = select(config, pool, rng_key=seed)
    metadata = {ROWS_PER_EPOCH: str(selection.per_epoch)} if selection.per_epoch is not None else None
    num = write_batches(out / SELECTION, _schema(selection, metadata), _selected(selection, row_ids, metadata))
    parts = [Part.describe(out, SELECTION, num)]
    if samples := directories.get("samples"):
        given = directories.get("labels")
        labels = PseudoLabels.open(given).labels() if given else label(ClustersLabelerConfig(), pool.hierarchy)
        parts.append(_write_training_list(Samples.open(samples), selection, row_ids, labels, metadata, out))
    statistics = {"reason": selection.reason, **selection.counts, "balance": _balance(selection, pool.hierarchy)}
    if pool.embeddings is not None and len(selection.rows):
        statistics |= _spread(pool.embeddings, selection.rows, seed)
    return parts, statistics


def _pool(config: SelectConfig, clusters: Clusters, row_ids: np.ndarray, directories: Mapping[str, Path]) -> Pool:
    """What there is to choose from."""
    normalize, available = clusters.normalized, None
    if duplicates := directories.get("duplicates"):
        available = np.isin(row_ids, Duplicates.open(duplicates).dropped_row_ids(), invert=True)
    embeddings: EmbeddingSource | None = None
    queries: EmbeddingSource | None = None
    if place := directories.get("embeddings"):
        opened = Embeddings.open(place)
        embeddings, queries = opened.pool(normalize=normalize), opened.source(QUERY, normalize=normalize)
        if embeddings.num_rows != len(row_ids):
            raise DataError(
                f"{place} has {embeddings.num_rows:,} rows, {clusters.directory} {len(row_ids):,}: these were not clustered."
            )
    if place := directories.get("queries"):
        queries = Embeddings.open(place).pool(normalize=normalize)
    if queries is None and "queries" in config.needs:
        raise ConfigError(
            "This selection looks for what is like some examples. Put these in a folder named query in the source, or give "
            "their embeddings with --queries."
        )
    scores = Scores.open(directories["scores"]).read(len(row_ids)) if "scores" in directories else None
    return Pool(hierarchy=clusters.hierarchy(), available=available, embeddings=embeddings, queries=queries, scores=scores)


def _schema(selection: Selection, metadata: dict[str, str] | None) -> pa.Schema:
    weight = {} if selection.weights is None else {"weight": pa.float32()}
    return pa.schema({"row_id": pa.int64(), "repeats": pa.int32(), "reason": pa.string(), **weight}, metadata=metadata)


def _selected(selection: Selection, row_ids: np.ndarray, metadata: dict[str, str] | None) -> Iterator[pa.RecordBatch]:
    """The selected rows, block by block."""
    schema = _schema(selection, metadata)
    for first in range(0, max(len(selection.rows), 1), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        rows = selection.rows[block]
        weight = [] if selection.weights is None else [selection.weights[block]]
        reason = pa.array([selection.reason] * len(rows), pa.string())
        yield pa.record_batch([row_ids[rows], selection.repeats[block], reason, *weight], schema=schema)


def _write_training_list(
    samples: Samples,
    selection: Selection,
    row_ids: np.ndarray,
    labels: Labels,
    metadata: dict[str, str] | None,
    out: Path,
) -> Part:
    """Join the selected rows with the places of their bytes and with their labels, block by block."""
    places = pa.schema([(name, _INDEX.field(name).type) for name in PLACE])
    selected, classes = list(_schema(selection, None))[1:], [(name, pa.int32()) for name in labels.num_classes]
    schema = pa.schema([*places, *selected, *classes], metadata=metadata)

    def batches() -> Iterator[pa.RecordBatch]:
        label_columns = _labels_at(labels, _blocks(selection.rows))
        for batch, columns in zip(_selected(selection, row_ids, None), label_columns, strict=True):
            place = samples.rows(batch.column("row_id").to_numpy(), PLACE, POOL)
            arrays = [*(column.combine_chunks() for column in place.columns), *batch.columns[1:], *columns]
            yield pa.record_batch(arrays, schema=schema)

    return Part.describe(out, TRAINING, write_batches(out / TRAINING, schema, batches()))


def _blocks(rows: np.ndarray) -> Iterator[np.ndarray]:
    """The rows (S,) some at a time; at least one block."""
    return (rows[first : first + _BLOCK_ROWS] for first in range(0, max(len(rows), 1), _BLOCK_ROWS))


def _labels_at(labels: Labels, row_blocks: Iterator[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The label columns (B,) at each block of ascending rows (B,); reads the labels once."""
    label_blocks = labels.blocks()
    first, block = next(label_blocks)
    for rows in row_blocks:
        pieces: list[dict[str, np.ndarray]] = []
        while True:
            end = first + len(next(iter(block.values())))
            inside = rows[: np.searchsorted(rows, end)]
            pieces.append({name: column[inside - first] for name, column in block.items()})
            rows = rows[len(inside) :]
            if not len(rows):
                break
            first, block = next(label_blocks)
        yield [np.concatenate([piece[name] for piece in pieces]) for name in labels.num_classes]


def _balance(selection: Selection, hierarchy: ClusterHierarchy) -> dict[str, Any]:
    """How evenly the clusters of each level are filled, before and after."""
    selected = np.bincount(hierarchy.levels[0].assignment[selection.rows], minlength=hierarchy.levels[0].num_clusters)
    balance = {}
    for number, level in enumerate(hierarchy.levels, start=1):
        if number > 1:
            selected = np.bincount(level.assignment, weights=selected, minlength=level.num_clusters).astype(np.int64)
        balance[f"level_{number}"] = {
            "tv_pool": total_variation_from_uniform(level.sizes),
            "tv_selected": total_variation_from_uniform(selected),
            "covered": 1 - share_empty(selected),
        }
    return balance


def _spread(embeddings: EmbeddingSource, selected: np.ndarray, seed: int) -> dict[str, Any]:
    """How near the selected rows are to all others, and how unlike they are, beside as many rows drawn at random."""
    num = min(len(selected), _VENDI_ROWS)
    drawn = {
        "selected": selected[rng.permute(rng.key(seed, "vendi selected"), np.arange(num), len(selected))],
        "pool": rng.permute(rng.key(seed, "vendi pool"), np.arange(num), embeddings.num_rows),
    }
    # A matrix product may differ in its last bits with the number of threads; a manifest may not.
    scores = {name: round(vendi_score(ArraySource(embeddings.take(np.sort(rows)))), 4) for name, rows in drawn.items()}
    distance = coverage(embeddings, selected, rng_key=rng.key(seed, "coverage"))
    return {"distance_to_selected": distance._asdict(), "vendi": scores}
