"""dedup: which samples of the pool say the same as others, by their embeddings."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.config import DedupConfig
from curation.dedup.neighbours import Visits, find_visits, near_pairs
from curation.dedup.rules import drop
from curation.errors import ConfigError
from curation.files import atomic_path, write_atomic
from curation.hierarchy import Level
from pipeline.artifacts import Part, read_kind
from pipeline.cluster import read_hierarchy
from pipeline.embed import open_embeddings
from pipeline.stage import Made, Work

DUPLICATES = "duplicates.parquet"
_PART_ROWS = 250_000
_EDGES = pa.schema({"row_id": pa.int64(), "other_row_id": pa.int64(), "similarity": pa.float32()})


@dataclass(frozen=True)
class Dedup:
    """Pairs of near-duplicates and their similarity (`edges-*.parquet`), and which rows go for which (`duplicates.parquet`).

    Pairs are found inside and across the finest clusters of the input "clusters".
    """

    config: DedupConfig
    kind = "duplicates"

    def settings(self) -> dict[str, Any]:
        return self.config.deciding()

    def make(self, work: Work) -> Made:
        clusters, embeddings = work.inputs["clusters"], work.inputs["embeddings"]
        if not read_kind(clusters, "clusters").settings["normalize"]:
            raise ConfigError("Near-duplicates are found by cosine similarity. Cluster with normalize=true first.")
        hierarchy, row_ids = read_hierarchy(clusters)
        level = hierarchy.levels[0]
        num_parts = -(-len(row_ids) // _PART_ROWS)
        shares = [open_embeddings(embeddings).share(i, num_parts).num_rows for i in range(num_parts)]
        args = (embeddings, clusters, self.config)
        work.parts(visits_part, shares, *args, work.scratch, num_parts, label="visits", unit="rows", gpu=True)
        bounds = _cluster_bounds(level, num_parts)
        sizes = np.add.reduceat(level.sizes, bounds[:-1]).tolist()
        edges = work.parts(edges_part, sizes, *args, work.scratch, work.out, num_parts, label="edges", unit="rows", gpu=True)
        tables = [pq.read_table(work.out / part.path) for part in edges]
        table = pa.concat_tables([_EDGES.empty_table(), *tables])
        order = np.argsort(row_ids)
        first, second = (
            order[np.searchsorted(row_ids, table[name].to_numpy(), sorter=order)] for name in ("row_id", "other_row_id")
        )
        distance = np.asarray(level.squared_distance)
        gone, kept = drop(first, second, -distance if self.config.keep == "farthest" else distance, self.config.rule)
        with atomic_path(work.out / DUPLICATES) as temporary:
            dropped = pa.table({"row_id": row_ids[gone], "kept_row_id": row_ids[kept]})
            pq.write_table(dropped, temporary, compression="zstd")
        missed = sum(json.loads(path.read_text())["missed"] for path in sorted(work.scratch.glob("missed-*.json")))
        statistics = {"rows": len(row_ids), "pairs": table.num_rows, "dropped": len(gone), "missed_visits": missed}
        return Made([*edges, Part.of(work.out, DUPLICATES, len(gone))], statistics)


def visits_part(index: int, embeddings: Path, clusters: Path, config: DedupConfig, scratch: Path, num_parts: int) -> Part:
    """Which other clusters the rows of one share of the embeddings must be compared with."""
    source = open_embeddings(embeddings, normalize=True)
    first = sum(source.share(i, num_parts).num_rows for i in range(index))
    mine = source.share(index, num_parts)
    level = read_hierarchy(clusters)[0].levels[0]
    here = Level(
        centroids=level.centroids,
        assignment=level.assignment[first : first + mine.num_rows],
        squared_distance=level.squared_distance[first : first + mine.num_rows],
        sizes=level.sizes,
    )
    visits = find_visits(mine, here, config.radius, max_visits=config.max_visits)
    write_atomic(scratch / f"missed-{index:06d}.json", json.dumps({"missed": visits.missed}))
    name = f"visits-{index:06d}.parquet"
    with atomic_path(scratch / name) as temporary:
        pq.write_table(pa.table({"row": visits.row + first, "cluster": visits.cluster}), temporary)
    return Part.of(scratch, name, mine.num_rows)


def edges_part(
    index: int, embeddings: Path, clusters: Path, config: DedupConfig, scratch: Path, out: Path, num_parts: int
) -> Part:
    """All pairs found in one range of clusters."""
    source = open_embeddings(embeddings, normalize=True)
    hierarchy, row_ids = read_hierarchy(clusters)
    level = hierarchy.levels[0]
    low, high = _cluster_bounds(level, num_parts)[index : index + 2]
    inside = pc.field("cluster")
    found = [
        pq.read_table(path, filters=(inside >= low) & (inside < high)) for path in sorted(scratch.glob("visits-*.parquet"))
    ]
    table = pa.concat_tables(found)
    visits = Visits(table["row"].to_numpy(), table["cluster"].to_numpy(), 0)
    name = f"edges-{index:06d}.parquet"
    num = 0
    with (
        atomic_path(out / name) as temporary,
        pq.ParquetWriter(temporary, _EDGES, compression="zstd") as writer,
    ):
        for pairs in near_pairs(source, level, config.radius, visits, clusters=range(low, high)):
            columns = [row_ids[pairs.first], row_ids[pairs.second], 1 - pairs.squared / 2]
            writer.write_table(pa.table(columns, schema=_EDGES))
            num += len(pairs.first)
    return Part.of(out, name, num)


def _cluster_bounds(level: Level, num_parts: int) -> np.ndarray:
    """Ranges of clusters with about equally many rows: (P + 1,) ascending."""
    ends = np.cumsum(level.sizes)
    inner = np.searchsorted(ends, ends[-1] * np.arange(1, num_parts) // num_parts) + 1
    return np.minimum(np.concatenate([[0], inner, [level.num_clusters]]), level.num_clusters)
