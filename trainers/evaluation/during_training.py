"""Evaluation during training: scores of the encoder, and the saved encoders that belong to them.

An evaluation is settled once a checkpoint follows it. Until then a kill may lead back to before it, and so may a step that is
not finite, after which other samples are shown. So evaluations that are not settled are dropped when training continues, and
older encoders are deleted only for settled ones.
"""

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from curation.base.files import explained, write_atomic
from trainers.evaluation.embed import embed
from trainers.evaluation.knn import EvaluationSet
from trainers.models.config import TrainableConfig
from trainers.models.encoders import Encoder, build_backbone, export, without_weights
from trainers.output_files import BEST, ENCODERS, EVALUATIONS
from trainers.ranks import full_state, gather, rank, world_size


class Evaluations:
    """The evaluations of one training, in its directory. All ranks call the same methods in the same order.

    `evaluations.jsonl` has a line for each; `encoders/step-…` hold the encoders of the newest ones and of the best one, which
    the link `best` leads to.
    """

    def __init__(
        self,
        out: Path,
        encoder: TrainableConfig,
        evaluation_set: EvaluationSet | None,
        *,
        evaluate_every: float | None,
        keep_encoders: int,
        steps_per_epoch: float,
        total_steps: int,
        first_step: int,
        device: torch.device,
    ) -> None:
        """`evaluate_every` counts epochs, None: never; `first_step` is the step that training starts or continues from.

        Raises ValueError if there is no `evaluation_set` to evaluate on.
        """
        if evaluate_every and evaluation_set is None:
            raise ValueError("evaluate_every needs samples to evaluate on")
        self._out, self._encoder_config, self._set, self._device = out, encoder, evaluation_set, device
        self._evaluate_every, self._keep_encoders = evaluate_every, keep_encoders
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._encoder: Encoder | None = None
        self._lines: list[dict[str, Any]] = []
        self._reported = 0
        if rank() == 0:
            self._drop_after(first_step)

    def due(self, step: int) -> bool:
        """Whether to evaluate after `step` steps."""
        if self._evaluate_every is None:
            return False
        interval = self._evaluate_every * self._steps_per_epoch
        return step in (0, self._total_steps) or math.floor(step / interval + 1e-9) > math.floor((step - 1) / interval + 1e-9)

    def measure(self, step: int, backbone: nn.Module, settled: int) -> None:
        """Evaluate and save the encoder after `step` steps; the newest checkpoint is that of step `settled`.

        Features come from a copy of the network, so that the training is not affected: modes, running statistics, random
        numbers. Raises DataError if the encoder or the line cannot be written.
        """
        assert self._set is not None
        weights = full_state(backbone)
        features = self._features(self._set, weights)
        if rank() > 0:
            return
        scores = self._set.scores(features, self._device) if np.isfinite(features).all() else _NOT_FINITE
        with explained(f"The evaluation of step {step:,}", self._out):
            if step > 0:  # at step 0 there is nothing to keep: the weights came from elsewhere or from a seed
                self._save(step, weights)
            self._lines.append({"step": step, "epoch": round(step / self._steps_per_epoch, 6), **scores})
            with (self._out / EVALUATIONS).open("a") as file:
                file.write(json.dumps(self._lines[-1]) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint may follow, which counts on this line
            self._link_best()
            self._delete_up_to(settled)

    def new_lines(self) -> list[dict[str, Any]]:
        """The lines since the last call, on rank 0."""
        lines, self._reported = self._lines[self._reported :], len(self._lines)
        return lines

    def finish(self) -> None:
        """Settle all evaluations, at the end of the training."""
        if rank() == 0:
            self._delete_up_to(self._total_steps)

    def _features(self, evaluation_set: EvaluationSet, weights: dict[str, Tensor]) -> np.ndarray:
        """Features (M, D) float32 of the samples of the set: each rank encodes a share, and all shares are gathered."""
        if self._encoder is None:
            with torch.random.fork_rng(devices=[]):
                config = without_weights(self._encoder_config)
                self._encoder = Encoder(config, build_backbone(config))
        self._encoder.backbone.load_state_dict(weights)
        samples, num = evaluation_set.samples, len(evaluation_set.samples)
        padded = np.resize(np.arange(num), math.ceil(num / world_size()) * world_size())
        indices = padded[rank() :: world_size()]
        batch_size = evaluation_set.config.batch_size
        features = embed(self._encoder, samples, indices, batch_size=batch_size, device=self._device)
        self._encoder.cpu()
        return gather(torch.from_numpy(features).to(self._device))[:num].cpu().numpy()

    def _save(self, step: int, weights: dict[str, Tensor]) -> None:
        path = self._out / ENCODERS / _name(step)
        export(self._encoder_config, weights, path.with_name(f".{path.name}"))
        path.with_name(f".{path.name}").rename(path)

    def _drop_after(self, first_step: int) -> None:
        """Keep the evaluations up to `first_step`, where training continues; that of step 0 is made again."""
        path = self._out / EVALUATIONS
        if path.exists():
            complete = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            lines = [json.loads(line) for line in complete]
            self._lines = [line for line in lines if first_step and line["step"] <= first_step]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._reported = len(self._lines)
        for leftover in (self._out / ENCODERS).glob(".*"):
            shutil.rmtree(leftover)
        for encoder in self._saved():
            if _step(encoder) > first_step:
                _delete(encoder)
        self._link_best()

    def _saved(self) -> list[Path]:
        return sorted((self._out / ENCODERS).glob("step-*"))

    def _best(self, until: int | None = None) -> Path | None:
        """The saved encoder with the best kNN score, or without labels the best RankMe; the newest of equals."""
        scores = {_name(line["step"]): line.get("knn", line["rankme"]) for line in self._lines}
        saved = [encoder for encoder in self._saved() if until is None or _step(encoder) <= until]
        return max(reversed(saved), key=lambda encoder: scores[encoder.name], default=None)

    def _link_best(self) -> None:
        best, link = self._best(), self._out / BEST
        if link.is_dir() and not link.is_symlink():  # copying a run may turn the link into a directory
            shutil.rmtree(link)
        if best is None:
            link.unlink(missing_ok=True)
            return
        fresh = link.with_name(f".{BEST}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(best.relative_to(self._out))
        fresh.replace(link)

    def _delete_up_to(self, settled: int) -> None:
        """Delete the encoders up to step `settled`, but for the newest and the best."""
        saved = [encoder for encoder in self._saved() if _step(encoder) <= settled]
        for encoder in saved[: -self._keep_encoders]:
            if encoder != self._best(settled):
                _delete(encoder)


_NOT_FINITE = {"rankme": 0.0, "uniformity": 0.0, "feature_std": 0.0}
"""Scores of features that are not finite."""


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(encoder: Path) -> int:
    return int(encoder.name.removeprefix("step-"))


def _delete(encoder: Path) -> None:
    """Delete an encoder, renamed first to a hidden name, so that a kill leaves no half of it in sight."""
    hidden = encoder.with_name(f".{encoder.name}")
    encoder.rename(hidden)
    shutil.rmtree(hidden)
