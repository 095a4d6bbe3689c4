"""Finding pairs: by embeddings, cluster by cluster; by signatures; or among the pairs of an earlier deduplication."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base.files import atomic_path, write_atomic
from curation.dedup.config import DedupConfig
from pipeline.artifacts.duplicates import EDGES_SCHEMA, Duplicates, edges_name, write_edges
from pipeline.artifacts.manifest import Part
from pipeline.artifacts.samples import Samples
from pipeline.deduplication.joined import JoinedRows, row_lookup
from pipeline.modalities.modality import SIGNATURE, open_modality
from pipeline.splits import HELD_OUT, POOL


def visits_part(index: int, first: int, num: int, joined: JoinedRows, config: DedupConfig, scratch: Path) -> list[Part]:
    """Find the other clusters that the `num` rows from `first` on must be compared with."""
    from curation.dedup.neighbours import find_visits

    rows, assignment = joined.source().share(index, joined.num_parts), joined.array("assignment")
    centroids = joined.level().centroids
    visits = find_visits(rows, centroids, assignment[first : first + num], config.radius, max_visits=config.max_visits)
    write_atomic(scratch / f"missed-{index:06d}.json", json.dumps({"missed": visits.missed}))
    name = f"visits-{index:06d}.parquet"
    table = pa.table({"row": visits.row + first, "cluster": visits.cluster})
    with atomic_path(scratch / name) as temporary:
        # In the order of clusters, so that whoever looks for a few finds them in few groups of rows.
        pq.write_table(table.sort_by("cluster"), temporary, row_group_size=2**16)
    return [Part.describe(scratch, name, num)]


def missed_visits(scratch: Path) -> int:
    """How many visits were left out by `max_visits`."""
    return sum(json.loads(path.read_text())["missed"] for path in sorted(scratch.glob("missed-*.json")))


def edges_part(index: int, low: int, high: int, joined: JoinedRows, radius: float, scratch: Path, out: Path) -> list[Part]:
    """All pairs found in one range of clusters, but for those among held-out rows."""
    import pyarrow.compute as pc

    from curation.dedup.neighbours import Visits, near_pairs

    cluster = pc.field("cluster")
    in_range = (cluster >= low) & (cluster < high)
    table = pa.concat_tables(pq.read_table(path, filters=in_range) for path in sorted(scratch.glob("visits-*.parquet")))
    visits = Visits(table["row"].to_numpy(), table["cluster"].to_numpy(), 0)
    pairs = near_pairs(
        joined.source(),
        joined.level().centroids,
        joined.array("members"),
        joined.array("offsets"),
        visits,
        radius,
        clusters=range(low, high),
    )
    tables = (_edges(found.first, found.second, joined, squared=found.squared) for found in pairs)
    return [write_edges(out, edges_name(index), tables)]


def signature_edges(joined: JoinedRows, samples: Path, max_distance: int, out: Path) -> list[Part]:
    """Pairs whose signatures differ by at most `max_distance`."""
    import pyarrow.compute as pc

    opened, row_id, num_pool = Samples.open(samples), joined.array("row_id"), joined.num_pool
    signatures, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for split, row_ids, first in ((POOL, row_id[:num_pool], 0), (HELD_OUT, row_id[num_pool:], num_pool)):
        index = opened.index(split, ["row_id", SIGNATURE])
        index = index.filter(pc.and_(pc.is_valid(index[SIGNATURE]), pc.is_in(index["row_id"], pa.array(row_ids))))
        signatures.append(index[SIGNATURE].to_numpy())
        rows.append(row_lookup(row_ids)(index["row_id"].to_numpy()) + first)
    row = np.concatenate(rows)
    pairs = open_modality(opened.modality).near_signatures(np.concatenate(signatures), max_distance)
    tables = (_edges(row[first], row[second], joined, bits=bits) for first, second, bits in pairs)
    return [write_edges(out, edges_name("signatures"), tables)]


def filter_earlier_edges(earlier: Path, config: DedupConfig, out: Path) -> list[Part]:
    """The pairs of an earlier deduplication that are near enough for stricter settings."""
    import pyarrow.compute as pc

    near = pc.field("similarity") >= config.similarity
    keep = near if config.hash_bits is None else near | (pc.field("bits") <= config.hash_bits)
    tables = (pq.read_table(path, filters=keep) for path in Duplicates.open(earlier).edges())
    return [write_edges(out, edges_name(0), tables)]


def _edges(
    first: np.ndarray,
    second: np.ndarray,
    joined: JoinedRows,
    *,
    squared: np.ndarray | None = None,
    bits: np.ndarray | None = None,
) -> pa.Table:
    """Pairs of rows (E,), (E,) as a table; those among held-out rows are left out."""
    first, second = np.minimum(first, second), np.maximum(first, second)
    row_id, in_pool = joined.array("row_id"), first < joined.num_pool
    columns = {
        "row_id": row_id[first[in_pool]],
        "other_row_id": row_id[second[in_pool]],
        "held_out": second[in_pool] >= joined.num_pool,
        "similarity": pa.nulls(in_pool.sum()) if squared is None else 1 - squared[in_pool] / 2,
        "bits": pa.nulls(in_pool.sum()) if bits is None else bits[in_pool],
        "same": np.zeros(in_pool.sum(), dtype=bool) if squared is None else squared[in_pool] == 0,
    }
    return pa.table(columns).cast(EDGES_SCHEMA)
