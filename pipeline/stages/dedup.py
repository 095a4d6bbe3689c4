"""dedup: which samples of the pool say the same as others, or as a held-out one."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from curation.base import rng
from curation.base.errors import ConfigError
from curation.base.files import atomic_path, save_array, write_atomic
from curation.dedup.components import components
from curation.dedup.config import DedupConfig
from curation.dedup.rules import drop, leaks
from curation.embeddings.files import EmbeddingFiles
from curation.kmeans.levels import Level
from curation.sampling.draw import grouped
from pipeline.artifacts.manifest import DUPLICATES, Manifest, Part, identity, read_kind
from pipeline.sources.folder import HELD_OUT, POOL
from pipeline.stages.cluster import read_hierarchy
from pipeline.stages.embed import embedding_files, read_scores
from pipeline.stages.shard import read_index
from pipeline.stages.stage import Made, Work

_PART_ROWS, _MOST_PARTS = 250_000, 1024
_EDGES_HELD = 2**26
"""Edges in memory at once; each takes about a hundred bytes while it is decided which rows go."""
_COMPARED = 10**9
"""Pairs of rows compared to measure the recall."""
_EDGES = pa.schema(
    {
        "row_id": pa.int64(),
        "other_row_id": pa.int64(),
        "held_out": pa.bool_(),  # whether the other row is
        "similarity": pa.float32(),  # null where only the hashes tell
        "bits": pa.int8(),  # in which perceptual hashes differ; null where the embeddings tell
        "same": pa.bool_(),  # equal embeddings; n equal rows have n - 1 such edges, to the first of them
    }
)
_DUPLICATES = pa.schema({"row_id": pa.int64(), "kept_row_id": pa.int64(), "reason": pa.string()})


@dataclass(frozen=True)
class Dedup:
    """Pairs that say the same (`edges-*.parquet`), and which rows of the pool go for which (`duplicates.parquet`).

    Pairs of embeddings are found inside and across the finest clusters of the input "clusters"; with an input "edges", an
    earlier deduplication, among its pairs. Held-out rows are those of the input "held_out", or those of "embeddings" that a
    stage of ours made. "samples" has the perceptual hashes and sizes of images, "scores" a number a row.
    """

    config: DedupConfig
    kind = "duplicates"

    def settings(self) -> dict[str, Any]:
        return self.config.fingerprint_fields()

    def make(self, work: Work) -> Made:
        if not read_kind(work.inputs["clusters"], "clusters").settings["normalize"]:
            raise ConfigError("Near-duplicates are found by cosine similarity. Cluster with normalize=true first.")
        joined = _Joined.of(work, protect=self.config.protect)
        if "edges" in work.inputs:
            edges, missed = [_tighter(work, self.config)], Manifest.read(work.inputs["edges"]).statistics["missed_visits"]
        else:
            edges, missed = _find_edges(work, joined, self.config)
        dropped, recall = _decide([work.out / part.path for part in edges], joined, work, self.config)
        with atomic_path(work.out / DUPLICATES) as temporary:
            pq.write_table(dropped, temporary, compression="zstd")
        statistics = {
            "rows": joined.num_pool,
            "held_out": joined.num_rows - joined.num_pool,
            "pairs": sum(part.num_rows for part in edges),
            "dropped": dropped.num_rows,
            "reasons": dict(sorted(Counter(dropped["reason"].to_pylist()).items())),
            "missed_visits": missed,
            "recall": recall,
        }
        return Made([*edges, Part.of(work.out, DUPLICATES, dropped.num_rows)], statistics)


@dataclass(frozen=True)
class _Joined:
    """The rows of the pool and after them the held-out ones, which belong to the clusters they are nearest to."""

    pool: Sequence[Path]
    held_out: Sequence[Path]
    clusters: Path
    num_pool: int
    num_rows: int
    arrays: Path
    """Where the arrays are that all parts need, for each to read only its own of."""

    @classmethod
    def of(cls, work: Work, *, protect: bool) -> "_Joined":
        embeddings, other = work.inputs["embeddings"], work.inputs.get("held_out")
        held_out: Sequence[Path] = []
        if protect:
            held_out = embedding_files(embeddings, HELD_OUT) if other is None else embedding_files(other, POOL) or [other]
        pool = embedding_files(embeddings, POOL) or [embeddings]
        num_pool = EmbeddingFiles.open(pool).num_rows
        num_held_out = EmbeddingFiles.open(held_out).num_rows if held_out else 0
        joined = cls(pool, held_out, work.inputs["clusters"], num_pool, num_pool + num_held_out, work.scratch / "joined")
        if not (joined.arrays / "row_id.npy").exists():
            joined._save_arrays()
        return joined

    def _save_arrays(self) -> None:
        hierarchy, row_ids = read_hierarchy(self.clusters)
        level, held_out = hierarchy.levels[0], np.empty(0, np.int64)
        assignment = np.asarray(level.assignment)
        if self.held_out:
            held_out = EmbeddingFiles.open(self.held_out).row_ids()
            assignment = np.concatenate([assignment, self._nearest(level.centroids)])
        members, offsets = grouped(assignment, level.num_clusters)
        save_array(self.arrays / "assignment.npy", assignment)
        save_array(self.arrays / "members.npy", members)
        save_array(self.arrays / "offsets.npy", offsets)
        save_array(self.arrays / "row_id.npy", np.concatenate([row_ids, held_out]))

    def _nearest(self, level_centroids: np.ndarray) -> np.ndarray:
        """Which of the centroids (K, D) held-out rows are nearest to: (M,) int32."""
        import torch

        from curation.distance.nearest import NearestCentroid, default_device
        from curation.embeddings.blocks import tensor

        centroids = tensor(level_centroids).to(default_device())
        nearest = NearestCentroid(centroids, centroids.mean(0))
        source = EmbeddingFiles.open(self.held_out, normalize=True)
        blocks = [torch.from_numpy(block) for _, block in source.blocks()]
        labels = [nearest(some.to(centroids.device)).label for block in blocks for some in block.split(nearest.block_rows)]
        return torch.cat(labels).cpu().numpy().astype(np.int32)

    @property
    def num_parts(self) -> int:
        return min(-(-self.num_rows // _PART_ROWS), _MOST_PARTS)

    def source(self) -> EmbeddingFiles:
        return EmbeddingFiles.open([*self.pool, *self.held_out], normalize=True)

    def level(self) -> Level:
        """The finest level, of the pool alone."""
        return read_hierarchy(self.clusters)[0].levels[0]

    def array(self, name: str) -> np.ndarray:
        """`assignment` and `row_id` (num_rows,), or the rows by cluster: `members` (num_rows,), `offsets` (K + 1,)."""
        return np.load(self.arrays / f"{name}.npy", mmap_mode="r")


def _find_edges(work: Work, joined: _Joined, config: DedupConfig) -> tuple[list[Part], int]:
    """Parts of edges, and how many visits were left out."""
    source, num_parts = joined.source(), joined.num_parts
    shares = [source.share(i, num_parts).num_rows for i in range(num_parts)]
    work.parts(visits_part, shares, joined, shares, config, work.scratch, label="visits", unit="rows", gpu=True)
    bounds = _bounds(joined.array("offsets"), num_parts)
    sizes = np.diff(joined.array("offsets")[bounds]).tolist()
    edges = work.parts(edges_part, sizes, joined, bounds, config, work.scratch, work.out, label="edges", unit="rows", gpu=True)
    if config.hash_bits is not None and "samples" in work.inputs:
        edges.append(_hash_edges(work, joined, config.hash_bits))
    return edges, sum(json.loads(path.read_text())["missed"] for path in sorted(work.scratch.glob("missed-*.json")))


def visits_part(index: int, joined: _Joined, shares: list[int], config: DedupConfig, scratch: Path) -> Part:
    """Which other clusters the rows of one share of the embeddings must be compared with."""
    from curation.dedup.neighbours import find_visits

    first = sum(shares[:index])
    mine, assignment = joined.source().share(index, joined.num_parts), joined.array("assignment")
    visits = find_visits(
        mine, joined.level().centroids, assignment[first : first + shares[index]], config.radius, max_visits=config.max_visits
    )
    write_atomic(scratch / f"missed-{index:06d}.json", json.dumps({"missed": visits.missed}))
    name = f"visits-{index:06d}.parquet"
    table = pa.table({"row": visits.row + first, "cluster": visits.cluster})
    with atomic_path(scratch / name) as temporary:
        # In the order of clusters, so that whoever looks for a few finds them in few groups of rows.
        pq.write_table(table.sort_by("cluster"), temporary, row_group_size=2**16)
    return Part.of(scratch, name, mine.num_rows)


def edges_part(index: int, joined: _Joined, bounds: np.ndarray, config: DedupConfig, scratch: Path, out: Path) -> Part:
    """All pairs found in one range of clusters, but for those among held-out rows."""
    from curation.dedup.neighbours import Visits, near_pairs

    low, high = bounds[index : index + 2]
    inside = pc.field("cluster")
    found = [
        pq.read_table(path, filters=(inside >= low) & (inside < high)) for path in sorted(scratch.glob("visits-*.parquet"))
    ]
    table = pa.concat_tables(found)
    visits = Visits(table["row"].to_numpy(), table["cluster"].to_numpy(), 0)
    pairs = near_pairs(
        joined.source(),
        joined.level().centroids,
        joined.array("members"),
        joined.array("offsets"),
        visits,
        config.radius,
        clusters=range(low, high),
    )
    return _write_edges(out, f"edges-{index:06d}.parquet", (_edges(*some[:2], joined, squared=some.squared) for some in pairs))


def _hash_edges(work: Work, joined: _Joined, max_bits: int) -> Part:
    """Pairs whose perceptual hashes differ in few bits."""
    from curation.dedup.hashing import near_hashes

    row_id, num_pool = joined.array("row_id"), joined.num_pool
    hashes, rows = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for split, row_ids, first in ((POOL, row_id[:num_pool], 0), (HELD_OUT, row_id[num_pool:], num_pool)):
        index = read_index(work.inputs["samples"], split, ["row_id", "phash"])
        index = index.filter(pc.and_(pc.is_valid(index["phash"]), pc.is_in(index["row_id"], pa.array(row_ids))))
        hashes.append(index["phash"].to_numpy())
        rows.append(_finder(row_ids)(index["row_id"].to_numpy()) + first)
    row = np.concatenate(rows)
    pieces = near_hashes(np.concatenate(hashes), max_bits)
    tables = (_edges(row[first], row[second], joined, bits=bits) for first, second, bits in pieces)
    return _write_edges(work.out, "edges-hashes.parquet", tables)


def _tighter(work: Work, config: DedupConfig) -> Part:
    """Of the pairs of an earlier deduplication those that the settings still want."""
    place = work.inputs["edges"]
    earlier = read_kind(place, "duplicates")
    before = DedupConfig.model_validate(earlier.settings)
    given = {role: identity(path) for role, path in work.inputs.items() if role not in ("edges", "scores")}
    if given != {role: parent for role, parent in earlier.parents.items() if role != "scores"}:
        raise ConfigError(f"{place} was made from other {' or '.join(given)}. Leave out --edges.")
    looser = config.similarity < before.similarity or (config.protect and not before.protect)
    if looser or (config.hash_bits or 0) > (before.hash_bits or 0):
        raise ConfigError(
            f"{place} has the pairs for similarity={before.similarity} hash_bits={before.hash_bits} protect={before.protect} "
            "and can only be used for fewer. Raise similarity, lower hash_bits, or leave out --edges."
        )
    near = pc.field("similarity") >= config.similarity
    wanted = near if config.hash_bits is None else near | (pc.field("bits") <= config.hash_bits)
    files = [place / part.path for part in earlier.parts if part.path.startswith("edges-")]
    return _write_edges(work.out, "edges-000000.parquet", (pq.read_table(path, filters=wanted) for path in files))


def _edges(
    first: np.ndarray,
    second: np.ndarray,
    joined: _Joined,
    *,
    squared: np.ndarray | None = None,
    bits: np.ndarray | None = None,
) -> pa.Table:
    """Pairs of rows (E,), (E,) as a table; those among held-out rows are left out."""
    first, second = np.minimum(first, second), np.maximum(first, second)
    row_id, mine = joined.array("row_id"), first < joined.num_pool
    columns = {
        "row_id": row_id[first[mine]],
        "other_row_id": row_id[second[mine]],
        "held_out": second[mine] >= joined.num_pool,
        "similarity": pa.nulls(mine.sum()) if squared is None else 1 - squared[mine] / 2,
        "bits": pa.nulls(mine.sum()) if bits is None else bits[mine],
        "same": np.zeros(mine.sum(), dtype=bool) if squared is None else squared[mine] == 0,
    }
    return pa.table(columns).cast(_EDGES)


def _write_edges(out: Path, name: str, tables: Iterable[pa.Table]) -> Part:
    num = 0
    with atomic_path(out / name) as temporary, pq.ParquetWriter(temporary, _EDGES, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)
            num += table.num_rows
    return Part.of(out, name, num)


def _decide(files: Sequence[Path], joined: _Joined, work: Work, config: DedupConfig) -> tuple[pa.Table, float | None]:
    """Which rows go, for which, and why; and the share of all pairs of some random rows that the edges tell of.

    If there are more edges than fit in memory they are looked at component by component, so many at a time as fit.
    """
    from curation.dedup.neighbours import Pairs
    from curation.dedup.recall import brute_force, covered

    row_id, priority = joined.array("row_id"), _priority(work.inputs, joined, config)
    finders = [_finder(row_id[: joined.num_pool]), _finder(row_id[joined.num_pool :])]

    def pieces() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool)
        for path in files:
            yield from _read_edges(path, finders, joined.num_pool)

    num_groups = max(1, -(-sum(pq.ParquetFile(path).metadata.num_rows for path in files) // _EDGES_HELD))
    group = np.zeros(joined.num_rows, np.int8)
    if num_groups > 1:
        group = components(joined.num_rows, (piece[:2] for piece in pieces()), scratch=work.scratch / "components") % num_groups
    num = min(joined.num_rows, max(10, min(200, _COMPARED // joined.num_rows)))
    some = np.sort(rng.permute(rng.key(0, "recall"), np.arange(num), joined.num_rows))
    expected = brute_force(joined.source(), some, config.radius)
    expected = Pairs(*(column[expected.first < joined.num_pool] for column in expected))
    known = np.zeros(len(expected.first), dtype=bool)
    found = [_DUPLICATES.empty_table()]
    for number in range(num_groups):
        mine = (tuple(column[group[piece[0]] == number] for column in piece) for piece in pieces())
        first, second, same = (np.concatenate(column) for column in zip(*mine, strict=True))
        leaked, held_out = leaks(first, second, joined.num_pool, same=same)
        known |= covered(first, second, same, expected)
        known |= (expected.second >= joined.num_pool) & np.isin(expected.first, leaked)
        left = ~(np.isin(first, leaked) | np.isin(second, leaked) | (second >= joined.num_pool))
        gone, kept = drop(first[left], second[left], priority, config.rule, same=same[left])
        for rows, others, reason in (
            (leaked, held_out, "near held-out"),
            (gone, kept, "near-duplicate"),
        ):
            columns = {"row_id": row_id[rows], "kept_row_id": row_id[others], "reason": [reason] * len(rows)}
            found.append(pa.table(columns, schema=_DUPLICATES))
    return pa.concat_tables(found).sort_by("row_id"), float(known.mean()) if len(known) else None


def _read_edges(
    path: Path, finders: Sequence[Callable[[np.ndarray], np.ndarray]], num_pool: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Edges as rows (E,), (E,), and whether these are equal (E,)."""
    for batch in pq.ParquetFile(path).iter_batches(columns=["row_id", "other_row_id", "held_out", "same"]):
        held_out, other = batch["held_out"].to_numpy(zero_copy_only=False), batch["other_row_id"].to_numpy()
        second = np.empty(len(other), dtype=np.int64)
        second[~held_out] = finders[0](other[~held_out])
        second[held_out] = finders[1](other[held_out]) + num_pool
        yield finders[0](batch["row_id"].to_numpy()), second, batch["same"].to_numpy(zero_copy_only=False)


def _finder(row_ids: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Tells where in `row_ids` (N,) each of some row ids (M,) is; all of them are."""
    order = np.argsort(row_ids, kind="stable")
    return lambda wanted: order[np.searchsorted(row_ids, wanted, sorter=order)] if len(wanted) else wanted


def _priority(inputs: Mapping[str, Path], joined: _Joined, config: DedupConfig) -> np.ndarray:
    """(N,) which of two rows of the pool to keep: the one with the smaller number."""
    match config.keep:
        case "closest" | "farthest":
            squared = np.asarray(joined.level().squared_distance)
            return squared if config.keep == "closest" else -squared
        case "largest":
            if "samples" not in inputs:
                raise ConfigError("keep=largest compares images. Give what `windrow shard` wrote with --samples.")
            index = read_index(inputs["samples"], POOL, ["row_id", "width", "height"])
            pixels = index["width"].to_numpy().astype(np.int64) * index["height"].to_numpy()
            return -pixels[_finder(index["row_id"].to_numpy())(joined.array("row_id")[: joined.num_pool])]
        case "scores":
            if "scores" not in inputs:
                raise ConfigError("keep=scores compares a number a row. Give them with --scores, a .npy array.")
            return -read_scores(inputs["scores"], joined.num_pool).astype(np.float64)


def _bounds(offsets: np.ndarray, num_parts: int) -> np.ndarray:
    """Ranges of clusters with about equally many rows: (P + 1,) ascending, for the `offsets` (K + 1,) of their rows."""
    inner = np.searchsorted(offsets[1:], offsets[-1] * np.arange(1, num_parts) // num_parts) + 1
    return np.minimum(np.concatenate([[0], inner, [len(offsets) - 1]]), len(offsets) - 1)
