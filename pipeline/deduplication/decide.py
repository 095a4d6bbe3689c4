"""Deciding which rows of the pool are dropped, and for which."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import rng
from curation.dedup.config import DedupConfig
from pipeline.artifacts.duplicates import DROPPED_SCHEMA, write_dropped
from pipeline.artifacts.files import Scores
from pipeline.artifacts.manifest import Part
from pipeline.artifacts.samples import Samples
from pipeline.deduplication.joined import JoinedRows, row_lookup
from pipeline.modalities.modality import open_modality
from pipeline.splits import POOL

_EDGES_HELD = 2**26
"""Edges in memory at once; each takes about a hundred bytes while it is decided which rows are dropped."""
_COMPARED = 10**9
"""Pairs of rows compared to measure the recall."""


@dataclass(frozen=True)
class Edges:
    """Edge files of a deduplication, and its rows."""

    files: Sequence[Path]
    joined: JoinedRows

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Pairs as rows (E,), (E,), and whether these are equal (E,); some at a time."""
        row_id, num_pool = self.joined.array("row_id"), self.joined.num_pool
        lookups = [row_lookup(row_id[:num_pool]), row_lookup(row_id[num_pool:])]
        yield np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, bool)
        for path in self.files:
            yield from _read_edges(path, lookups, num_pool)

    def __len__(self) -> int:
        return sum(pq.ParquetFile(path).metadata.num_rows for path in self.files)


def decide(
    files: Sequence[Path],
    joined: JoinedRows,
    config: DedupConfig,
    samples: Path | None,
    scores: Path | None,
    out: Path,
    scratch: Path,
) -> tuple[Part, dict[str, Any]]:
    """Write which rows are dropped, for which, and why; and what to tell of it.

    `recall` is the share of all pairs of some random rows that the edges tell of. If there are more edges than fit in memory
    they are looked at component by component, so many at a time as fit.
    """
    from curation.dedup.components import components
    from curation.dedup.neighbours import Pairs
    from curation.dedup.recall import brute_force, covered
    from curation.dedup.rules import drop, leaks

    edges, row_id, priority = Edges(files, joined), joined.array("row_id"), _priority(joined, config, samples, scores)
    num_groups = max(1, -(-len(edges) // _EDGES_HELD))
    group = np.zeros(joined.num_rows, np.int8)
    if num_groups > 1:
        group = components(joined.num_rows, (piece[:2] for piece in edges), scratch=scratch / "components") % num_groups
    num = min(joined.num_rows, max(10, min(200, _COMPARED // joined.num_rows)))
    probes = np.sort(rng.permute(rng.key(0, "recall"), np.arange(num), joined.num_rows))
    expected = brute_force(joined.source(), probes, config.radius)
    expected = Pairs(*(column[expected.first < joined.num_pool] for column in expected))
    is_known = np.zeros(len(expected.first), dtype=bool)
    tables = [DROPPED_SCHEMA.empty_table()]
    for number in range(num_groups):
        in_group = (tuple(column[group[piece[0]] == number] for column in piece) for piece in edges)
        first, second, same = (np.concatenate(column) for column in zip(*in_group, strict=True))
        leaked, held_out = leaks(first, second, joined.num_pool, same=same)
        is_known |= covered(first, second, same, expected)
        is_known |= (expected.second >= joined.num_pool) & np.isin(expected.first, leaked)
        stays = ~(np.isin(first, leaked) | np.isin(second, leaked) | (second >= joined.num_pool))
        dropped, kept = drop(first[stays], second[stays], priority, config.rule, same=same[stays])
        for rows, others, reason in ((leaked, held_out, "near held-out"), (dropped, kept, "near-duplicate")):
            columns = {"row_id": row_id[rows], "kept_row_id": row_id[others], "reason": [reason] * len(rows)}
            tables.append(pa.table(columns, schema=DROPPED_SCHEMA))
    table = pa.concat_tables(tables).sort_by("row_id")
    reasons = dict(sorted(Counter(table["reason"].to_pylist()).items()))
    recall = float(is_known.mean()) if len(is_known) else None
    return write_dropped(out, table), {"dropped": table.num_rows, "reasons": reasons, "recall": recall}


def _read_edges(
    path: Path, lookups: Sequence[Callable[[np.ndarray], np.ndarray]], num_pool: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    for batch in pq.ParquetFile(path).iter_batches(columns=["row_id", "other_row_id", "held_out", "same"]):
        held_out, other = batch["held_out"].to_numpy(zero_copy_only=False), batch["other_row_id"].to_numpy()
        second = np.empty(len(other), dtype=np.int64)
        second[~held_out] = lookups[0](other[~held_out])
        second[held_out] = lookups[1](other[held_out]) + num_pool
        yield lookups[0](batch["row_id"].to_numpy()), second, batch["same"].to_numpy(zero_copy_only=False)


def _priority(joined: JoinedRows, config: DedupConfig, samples: Path | None, scores: Path | None) -> np.ndarray:
    """(N,): of two rows of the pool the one with the smaller number is kept."""
    match config.keep:
        case "closest" | "farthest":
            squared = np.asarray(joined.level().squared_distance)
            return squared if config.keep == "closest" else -squared
        case "largest":
            assert samples is not None
            opened = Samples.open(samples)
            modality = open_modality(opened.modality)
            index = opened.index(POOL, ["row_id", *modality.columns.names])
            lookup = row_lookup(index["row_id"].to_numpy())
            return -modality.detail(index)[lookup(joined.array("row_id")[: joined.num_pool])]
        case "scores":
            assert scores is not None
            return -Scores.open(scores).read(joined.num_pool).astype(np.float64)
