"""evaluate: what an encoder's frozen features are worth. Labels of the source are read here, and while training is measured."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from curation.base import rng
from curation.base.files import write_atomic
from curation.measures.balance import total_variation_from_uniform
from pipeline.artifacts.evaluation import EVALUATION, Evaluation
from pipeline.artifacts.labels import PseudoLabels
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.artifacts.training import FrozenEncoder
from pipeline.splits import POOL
from pipeline.stages.costs import encoder_cost
from pipeline.stages.evaluation_set import evaluation_set
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput
from trainers.evaluation.config import EvaluateConfig
from trainers.models.config import EncoderConfig


@dataclass(frozen=True)
class Evaluate(Stage):
    """Scores of the input "encoder" on the labelled samples, and, with the input "selection", how even its classes are, and how
    well its labels agree with the classes.

    The held-out split is classified by the pool. Without one, a fifth of the pool is classified by the rest.
    """

    config: EvaluateConfig
    seed: int
    encoder: EncoderConfig | None = None
    """The settings of the input "encoder", for the estimate."""
    name = "evaluate"
    makes = Evaluation
    inputs: ClassVar[Mapping[str, Input]] = {
        "samples": Input(Samples, made_into=("selection", "labels")),
        "encoder": Input(FrozenEncoder),
        "selection": Input(SelectedRows, optional=True),
        "labels": Input(PseudoLabels, optional=True),
    }

    def settings(self) -> dict[str, Any]:
        return {"seed": self.seed, **self.config.fingerprint_fields()}

    def make(self, context: StageContext) -> StageOutput:
        samples, encoder = context.inputs["samples"].directory, context.inputs["encoder"].directory
        balanced = (context.directory("selection"), context.directory("labels"))
        context.call(evaluate_encoder, self.config, self.seed, samples, encoder, *balanced, context.out, on_gpu=True)
        scores = json.loads((context.out / EVALUATION).read_text())
        return StageOutput([Part.describe(context.out, EVALUATION, 1)], scores)

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        samples, most = inputs["samples"], self.config.max_samples
        rows = min(samples.rows, most) + min(samples.held_out, most)
        flops = encoder_cost(self.encoder)[0] if self.encoder else 0
        return Estimate(rows, num_bytes=2000, flops=rows * flops, decodes=rows)

    def describe(self, manifest: Manifest) -> str:
        s = manifest.statistics
        return (f"kNN {s['knn']:.1%}, linear {s['linear']:.1%}, " if "knn" in s else "") + f"RankMe {s['rankme']:.1f}"


def evaluate_encoder(
    config: EvaluateConfig,
    seed: int,
    samples: Path,
    encoder_directory: Path,
    selection: Path | None,
    labels: Path | None,
    out: Path,
) -> None:
    """Write `evaluation.json`."""
    from curation.base.device import default_device
    from trainers.evaluation.embed import embed
    from trainers.evaluation.probes import probe_accuracy
    from trainers.models.encoders import Encoder

    device, opened = default_device(), Samples.open(samples)
    evaluated = evaluation_set(config, seed, opened)
    rows = np.arange(len(evaluated.samples))
    features = embed(Encoder.load(encoder_directory), evaluated.samples, rows, batch_size=config.batch_size, device=device)
    scores: dict[str, Any] = {"dim": features.shape[1], **evaluated.scores(features, device)}
    if evaluated.is_labelled:
        scores |= probe_accuracy(*evaluated.classified(features), rng_key=rng.key(seed, "probe"), device=device)
    if selection is not None and len(evaluated.bank):
        opened_labels = PseudoLabels.open(labels) if labels else None
        scores |= _by_class(opened, SelectedRows.open(selection), opened_labels, rng.key(seed, "agreement"))
    write_atomic(out / EVALUATION, json.dumps(scores, indent=1) + "\n")


def _by_class(samples: Samples, selection: SelectedRows, labels: PseudoLabels | None, rng_key: int) -> dict[str, Any]:
    """Histograms of the classes of the labelled pool and of what was selected of it; and how well each label column agrees with
    the classes."""
    from curation.measures.agreement import ami, ari, contingency, nmi

    classes, row_ids, number = _classes(samples)
    selected = np.zeros(len(classes), dtype=np.int64)
    for ids in selection.row_ids():
        selected += np.bincount(number[_places(row_ids, ids)], minlength=len(classes))
    pool = np.bincount(number, minlength=len(classes))
    scores: dict[str, Any] = {
        "class_balance": {
            "classes": classes,
            "pool": pool.tolist(),
            "selected": selected.tolist(),
            "tv_pool": total_variation_from_uniform(pool),
            "tv_selected": total_variation_from_uniform(selected),
        }
    }
    if labels is not None:
        scores["class_agreement"] = {}
        for name in labels.num_classes:
            columns = [(batch["row_id"].to_numpy(), batch[name].to_numpy()) for batch in labels.batches(["row_id", name])]
            ids, label = (np.concatenate(column) for column in zip(*columns, strict=True))
            is_labelled = np.isin(ids, row_ids)
            table = contingency(label[is_labelled], number[_places(row_ids, ids[is_labelled])])
            scores["class_agreement"][name] = {"nmi": nmi(table), "ami": ami(table, rng_key=rng_key), "ari": ari(table)}
    return scores


def _classes(samples: Samples) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The names of the classes of the pool, and of its labelled samples the row ids (M,), ascending, and the classes (M,)."""
    codes: dict[str, int] = {}
    pieces = [(np.empty(0, np.int64), np.empty(0, np.int64))]
    for table in samples.tables(POOL, ["row_id", "label"]):
        labelled = table.drop_null()
        encoded = labelled["label"].combine_chunks().dictionary_encode()
        code = np.array([codes.setdefault(name, len(codes)) for name in encoded.dictionary.to_pylist()], dtype=np.int64)
        pieces.append((labelled["row_id"].to_numpy(), code[encoded.indices.to_numpy()] if len(code) else code))
    row_ids, code = (np.concatenate(column) for column in zip(*pieces, strict=True))
    names = sorted(codes)
    rank = np.empty(len(names), dtype=np.int64)
    rank[[codes[name] for name in names]] = np.arange(len(names))
    return names, row_ids, rank[code]


def _places(row_ids: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Where in the ascending `row_ids` (M,) those of `ids` are that are there."""
    place = np.minimum(np.searchsorted(row_ids, ids), len(row_ids) - 1)
    return place[row_ids[place] == ids]
