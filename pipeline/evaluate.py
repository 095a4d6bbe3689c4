"""evaluate: what an encoder's frozen features are worth. The only stage that reads labels."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from curation import rng
from curation.files import write_atomic
from curation.quality import ami, ari, contingency, nmi, total_variation_from_uniform
from pipeline.artifacts import Part, read_kind
from pipeline.embed import sample_list
from pipeline.select import PSEUDO_LABELS, SELECTION
from pipeline.shard import read_index
from pipeline.sources import HELD_OUT, POOL
from pipeline.stage import Made, Work
from trainers.config import EvaluateConfig

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
        return {"seed": self.seed, **self.config.deciding()}

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
    from curation.distance import default_device
    from trainers.embed import embed
    from trainers.encoders import Encoder
    from trainers.evaluate import knn_accuracy, label_free
    from trainers.probes import probe_accuracy

    device = default_device()
    encoder = Encoder.load(encoder_directory)
    features, labels = {}, {}
    for split in (POOL, HELD_OUT):
        every = sample_list(samples, split)
        names = read_index(samples, split, ["label"])["label"].to_numpy(zero_copy_only=False)
        rows = np.sort(rng.permute(rng.key(seed, split), np.arange(min(config.max_samples, len(every))), len(every)))
        features[split] = np.empty((0, 1), dtype=np.float32)
        if len(rows):
            features[split] = embed(encoder, every, rows, batch_size=config.batch_size, device=device)
        labels[split] = names[rows]
    result: dict[str, Any] = {"dim": features[POOL].shape[1], **label_free(features[POOL], stream=seed)}

    bank, bank_names = _labelled(features[POOL], labels[POOL])
    queries, query_names = _labelled(features[HELD_OUT], labels[HELD_OUT])
    if len(queries) == 0 and len(bank) > 1:
        is_query = rng.uniform(rng.key(seed, "queries"), np.arange(len(bank)))[:, 0] < 0.2
        is_query[0], is_query[1] = True, False
        queries, query_names = bank[is_query], bank_names[is_query]
        bank, bank_names = bank[~is_query], bank_names[~is_query]
    if len(bank) and len(queries):
        classes, numbers = np.unique(np.concatenate([bank_names, query_names]), return_inverse=True)
        known, asked = numbers[: len(bank)], numbers[len(bank) :]
        result |= {"classes": len(classes), "labelled": len(bank), "queries": len(queries)}
        result |= knn_accuracy(bank, known, queries, asked, config, device=device)
        result |= probe_accuracy(bank, known, queries, asked, stream=rng.key(seed, "probe"), device=device)
    if selection is not None and len(bank):
        result["class_balance"] = _class_balance(samples, selection)
        result["class_agreement"] = _class_agreement(samples, selection, rng.key(seed, "agreement"))
    write_atomic(out / EVALUATION, json.dumps(result, indent=1) + "\n")


def _labelled(features: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    known = names != None  # noqa: E711 - elementwise
    return features[known], names[known].astype(str)


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
        result[name] = {"nmi": nmi(table), "ami": ami(table, stream=stream), "ari": ari(table)}
    return result
