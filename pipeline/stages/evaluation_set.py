"""The samples that encoders are measured on, which two stages draw alike."""

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from curation.base import rng
from pipeline.artifacts.samples import Samples
from pipeline.splits import HELD_OUT, POOL
from trainers.data.samples import PLACE, SampleList
from trainers.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from trainers.evaluation.knn import EvaluationSet


def evaluation_set(config: EvaluateConfig, seed: int, samples: Samples) -> "EvaluationSet":
    """At most `max_samples` of the pool and of the held-out split each, drawn by `seed`, with their classes.

    The held-out samples are queries. Where none of them is labelled, a fifth of the labelled samples of the pool are.
    """
    from trainers.evaluation.knn import EvaluationSet

    chosen = []
    for split in (POOL, HELD_OUT):
        row_ids = samples.index(split, ["row_id"])["row_id"].to_numpy()
        rows = rng.permute(rng.key(seed, split), np.arange(min(config.max_samples, len(row_ids))), len(row_ids))
        chosen.append(samples.rows(row_ids[np.sort(rows)], [*PLACE, "label"], split))
    table = pa.concat_tables(chosen)
    names = table["label"].to_numpy(zero_copy_only=False)
    known = np.flatnonzero(names != None)  # noqa: E711 - elementwise
    label = np.full(len(names), -1, dtype=np.int64)
    label[known] = np.unique(names[known].astype(str), return_inverse=True)[1]
    is_query = (label >= 0) & (np.arange(len(label)) >= len(chosen[0]))
    if not is_query.any() and len(known) > 1:
        is_query[known] = rng.uniform(rng.key(seed, "queries"), np.arange(len(known)))[:, 0] < 0.2
        is_query[known[:2]] = True, False
    listed = SampleList.of(table, samples.directory)
    return EvaluationSet(listed, len(chosen[0]), label, is_query, config, seed)
