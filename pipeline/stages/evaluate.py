"""evaluate: what an encoder's frozen features are worth. The only stage that reads labels."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from curation.base import rng
from curation.base.files import write_atomic
from curation.measures.agreement import ami, ari, contingency, nmi
from curation.measures.balance import total_variation_from_uniform
from pipeline.artifacts.manifest import Part, read_kind
from pipeline.sources.folder import HELD_OUT, POOL
from pipeline.stages.select import PSEUDO_LABELS, SELECTION
from pipeline.stages.shard import read_index
from pipeline.stages.stage import Made, Work
from trainers.config import EvaluateConfig
from trainers.data.samples import PLACE, SampleList

if TYPE_CHECKING:
    from trainers.evaluation.knn import EvaluationSet

EVALUATION = "evaluation.json"


@dataclass(frozen=True)
class Evaluate:
    """Scores of the input "encoder" on the labelled samples, and, with an input "selection", how even its classes are, and how
    well the clusters it was made from agree with the classes.

    The held-out split is classified by the pool. Without one, a fifth of the pool is classified by the rest.
    """

    config: EvaluateConfig
    seed: int
    kind = "evaluation"

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.fingerprint_fields()}

    def make(self, work: Work) -> Made:
        selection = work.inputs.get("selection")
        read_kind(work.inputs["samples"], "samples")
        inputs = (work.inputs["samples"], work.inputs["encoder"], selection)
        work.runtime.call(evaluate_encoder, self.config, self.seed, *inputs, work.out, gpu=True)
        found = json.loads((work.out / EVALUATION).read_text())
        return Made([Part.of(work.out, EVALUATION, 1)], found)


def evaluate_encoder(
    config: EvaluateConfig, seed: int, samples: Path, encoder_directory: Path, selection: Path | None, out: Path
) -> None:
    """Write `evaluation.json`."""
    from curation.distance.nearest import default_device
    from trainers.evaluation.embed import embed
    from trainers.evaluation.probes import probe_accuracy
    from trainers.models.encoders import Encoder

    device = default_device()
    asked = evaluation_set(config, seed, samples)
    every = np.arange(len(asked.samples))
    features = embed(Encoder.load(encoder_directory), asked.samples, every, batch_size=config.batch_size, device=device)
    result: dict[str, Any] = {"dim": features.shape[1], **asked.scores(features, device)}
    if asked.is_labelled:
        result |= probe_accuracy(*asked.classified(features), stream=rng.key(seed, "probe"), device=device)
    if selection is not None and len(asked.bank):
        result["class_balance"] = _class_balance(samples, selection)
        result["class_agreement"] = _class_agreement(samples, selection, rng.key(seed, "agreement"))
    write_atomic(out / EVALUATION, json.dumps(result, indent=1) + "\n")


def evaluation_set(config: EvaluateConfig, seed: int, samples: Path) -> "EvaluationSet":
    """At most `max_samples` of the pool and of the held-out split each, drawn by `seed`, with their classes.

    The held-out samples are queries. Where none of them is labelled, a fifth of the labelled samples of the pool are.
    """
    from trainers.evaluation.knn import EvaluationSet

    chosen = []
    for split in (POOL, HELD_OUT):
        index = read_index(samples, split, [*PLACE, "label"])
        rows = rng.permute(rng.key(seed, split), np.arange(min(config.max_samples, len(index))), len(index))
        chosen.append(index.take(np.sort(rows)))
    table = pa.concat_tables(chosen)
    names = table["label"].to_numpy(zero_copy_only=False)
    known = np.flatnonzero(names != None)  # noqa: E711 - elementwise
    label = np.full(len(names), -1, dtype=np.int64)
    label[known] = np.unique(names[known].astype(str), return_inverse=True)[1]
    is_query = (label >= 0) & (np.arange(len(label)) >= len(chosen[0]))
    if not is_query.any() and len(known) > 1:
        is_query[known] = rng.uniform(rng.key(seed, "queries"), np.arange(len(known)))[:, 0] < 0.2
        is_query[known[:2]] = True, False
    listed = SampleList.of(table, samples)
    return EvaluationSet(listed, len(chosen[0]), label, is_query, config, seed)


def _class_balance(samples: Path, selection: Path) -> dict[str, Any]:
    """Class histograms of the labelled pool and of what was selected of it."""
    index = read_index(samples, POOL, ["row_id", "label"]).drop_null()
    classes, numbers = np.unique(index["label"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    chosen = np.isin(index["row_id"].to_numpy(), pq.read_table(selection / SELECTION)["row_id"].to_numpy())
    pool, selected = (np.bincount(numbers[mask], minlength=len(classes)) for mask in (chosen | True, chosen))
    return {
        "classes": classes.tolist(),
        "pool": pool.tolist(),
        "selected": selected.tolist(),
        "tv_pool": total_variation_from_uniform(pool),
        "tv_selected": total_variation_from_uniform(selected),
    }


def _class_agreement(samples: Path, selection: Path, stream: int) -> dict[str, dict[str, float]]:
    """How well the clusters of each level agree with the classes of the labelled pool."""
    index = read_index(samples, POOL, ["row_id", "label"]).drop_null()
    _, numbers = np.unique(index["label"].to_numpy(zero_copy_only=False).astype(str), return_inverse=True)
    clusters = pq.read_table(selection / PSEUDO_LABELS)
    _, labelled, clustered = np.intersect1d(index["row_id"], clusters["row_id"], return_indices=True)
    result = {}
    for name in clusters.column_names[1:]:
        table = contingency(clusters[name].to_numpy()[clustered], numbers[labelled])
        result[name] = {"nmi": nmi(table), "ami": ami(table, rng_key=stream), "ari": ari(table)}
    return result
