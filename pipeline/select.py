"""select: which samples of the pool the next training sees, and which cluster each belongs to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation import sampling
from curation.config import BalancedConfig, RandomConfig
from curation.files import atomic_path
from curation.quality import total_variation_from_uniform
from curation.selection import Selection
from pipeline.artifacts import Part, read_kind
from pipeline.cluster import read_hierarchy
from pipeline.dedup import DUPLICATES
from pipeline.shard import read_index
from pipeline.sources import POOL
from pipeline.stage import Made, Work

SELECTION, TRAINING, PSEUDO_LABELS = "selection.parquet", "training.parquet", "pseudo-labels.parquet"


@dataclass(frozen=True)
class Select:
    """Tables: the selection (row_id, repeats, reason); the pseudo-labels of the whole pool (row_id, level_1, …); and, with an
    input "samples", the training list, which has what a loader needs to stream the selection from the shards.

    With an input "duplicates", rows that go for others are left out before anything is selected.
    """

    config: BalancedConfig | RandomConfig
    seed: int
    kind = "selection"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.deciding()}

    def make(self, work: Work) -> Made:
        hierarchy, row_ids = read_hierarchy(work.inputs["clusters"])
        available = None
        if duplicates := work.inputs.get("duplicates"):
            read_kind(duplicates, "duplicates")
            available = ~np.isin(row_ids, pq.read_table(duplicates / DUPLICATES)["row_id"].to_numpy())
        budget = self.config.rows(len(row_ids))
        if isinstance(self.config, BalancedConfig):
            selection = sampling.balanced(
                hierarchy,
                budget,
                stream=self.seed,
                members=self.config.members,
                max_repeats=self.config.max_repeats,
                available=available,
            )
        else:
            selection = sampling.random(len(row_ids), budget, stream=self.seed, available=available)

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
        tables = {SELECTION: chosen, PSEUDO_LABELS: pool}
        if samples := work.inputs.get("samples"):
            index = read_index(samples, POOL, ["row_id", "shard", "offset", "size"])
            place = np.searchsorted(index["row_id"].to_numpy(), row_ids[selection.rows])
            training = index.take(place).append_column("repeats", chosen["repeats"])
            for name in labels:
                training = training.append_column(name, pool[name].take(selection.rows))
            tables[TRAINING] = training
        parts = []
        for name, table in tables.items():
            with atomic_path(work.out / name) as temporary:
                pq.write_table(table, temporary, compression="zstd")
            parts.append(Part.of(work.out, name, table.num_rows))
        return Made(parts, self._statistics(selection, labels))

    @staticmethod
    def _statistics(selection: Selection, labels: dict[str, np.ndarray]) -> dict[str, Any]:
        balance = {}
        for name, values in labels.items():
            num = int(values.max()) + 1
            balance[name] = {
                "tv_pool": total_variation_from_uniform(np.bincount(values, minlength=num)),
                "tv_selected": total_variation_from_uniform(np.bincount(values[selection.rows], minlength=num)),
            }
        return {"reason": selection.reason, **selection.counts, "cluster_balance": balance}
