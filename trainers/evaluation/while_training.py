"""Evaluation while training: what the encoder is worth, and the encoders that stay for it.

An evaluation is settled once a checkpoint follows it. Until then a kill may lead back to before it, and so may a step that is
not finite, after which other samples are shown. So what is not settled when training goes on is forgotten, and only for settled
ones are older encoders deleted.
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
from trainers.config import TrainConfig
from trainers.engine.layout import BEST, ENCODERS, EVALUATIONS
from trainers.engine.parallel import gather, rank, whole_state, world_size
from trainers.evaluation.embed import embed
from trainers.evaluation.knn import EvaluationSet
from trainers.models.encoders import Encoder, build_backbone, export, untrained


class Evaluations:
    """Those of one training, in its directory. All ranks call the same methods in the same order.

    `evaluations.jsonl` has a line for each; `encoders/step-…` hold the encoder of the newest ones and of the best one, which
    `best` is a link to.
    """

    def __init__(
        self,
        out: Path,
        config: TrainConfig,
        asked: EvaluationSet | None,
        *,
        steps_per_epoch: float,
        total_steps: int,
        begin_at: int,
        device: torch.device,
    ) -> None:
        """`asked` is what to measure on, needed with `evaluate_every`; `begin_at` the step that training goes on from."""
        if config.evaluate_every and asked is None:
            raise ValueError("evaluate_every needs samples to evaluate on")
        self._out, self._config, self._asked, self._device = out, config, asked, device
        self._steps_per_epoch, self._total_steps = steps_per_epoch, total_steps
        self._encoder: Encoder | None = None
        self._lines: list[dict[str, Any]] = []
        self._untold = 0
        if rank() == 0:
            self._forget_after(begin_at)

    def due(self, step: int) -> bool:
        """Whether to measure after so many steps."""
        if self._config.evaluate_every is None:
            return False
        every = self._config.evaluate_every * self._steps_per_epoch
        return step in (0, self._total_steps) or math.floor(step / every + 1e-9) > math.floor((step - 1) / every + 1e-9)

    def measure(self, step: int, backbone: nn.Module, settled: int) -> None:
        """Evaluate and save the encoder that training has reached; its newest checkpoint is of step `settled`.

        Features are those of a copy of the network, so that nothing of the training notices: modes, running statistics, random
        numbers. Raises DataError if the encoder or the line cannot be written.
        """
        assert self._asked is not None
        weights = whole_state(backbone)
        features = self._features(self._asked, weights)
        if rank() > 0:
            return
        scores = self._asked.scores(features, self._device) if np.isfinite(features).all() else _WORTHLESS
        with explained(f"The evaluation of step {step:,}", self._out):
            if step > 0:  # before, there is nothing to keep: the weights came from elsewhere or from a seed
                self._save(step, weights)
            self._lines.append({"step": step, "epoch": round(step / self._steps_per_epoch, 6), **scores})
            with (self._out / EVALUATIONS).open("a") as file:
                file.write(json.dumps(self._lines[-1]) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint may follow, which counts on this line
            self._link_best()
            self._delete_up_to(settled)

    def news(self) -> list[dict[str, Any]]:
        """The lines since the last call, on rank 0."""
        news, self._untold = self._lines[self._untold :], len(self._lines)
        return news

    def finish(self) -> None:
        """Training is at its end: everything is settled."""
        if rank() == 0:
            self._delete_up_to(self._total_steps)

    def _features(self, asked: EvaluationSet, weights: dict[str, Tensor]) -> np.ndarray:
        """(M, D) float32 of the samples to measure on, each rank's share gathered."""
        if self._encoder is None:
            with torch.random.fork_rng(devices=[]):
                network = untrained(self._config.encoder)
                self._encoder = Encoder(network, build_backbone(network))
        self._encoder.backbone.load_state_dict(weights)
        num = len(asked.samples)
        shared = np.resize(np.arange(num), math.ceil(num / world_size()) * world_size())
        mine = shared[rank() :: world_size()]
        found = embed(self._encoder, asked.samples, mine, batch_size=asked.config.batch_size, device=self._device)
        self._encoder.cpu()
        return gather(torch.from_numpy(found).to(self._device))[:num].cpu().numpy()

    def _save(self, step: int, weights: dict[str, Tensor]) -> None:
        path = self._out / ENCODERS / _name(step)
        export(self._config.encoder, weights, path.with_name(f".{path.name}"))
        path.with_name(f".{path.name}").rename(path)

    def _forget_after(self, begin_at: int) -> None:
        """Keep what was settled before training goes on from `begin_at`; the evaluation of step 0 is made again with it."""
        path = self._out / EVALUATIONS
        if path.exists():
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            lines = [json.loads(line) for line in whole]
            self._lines = [line for line in lines if begin_at and line["step"] <= begin_at]
            write_atomic(path, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._untold = len(self._lines)
        for left in (self._out / ENCODERS).glob(".*"):
            shutil.rmtree(left)
        for encoder in self._saved():
            if _step(encoder) > begin_at:
                _delete(encoder)
        self._link_best()

    def _saved(self) -> list[Path]:
        return sorted((self._out / ENCODERS).glob("step-*"))

    def _best(self, until: int | None = None) -> Path | None:
        """The best encoder of those evaluations, by kNN where there are labels and else by RankMe; the newest of equals."""
        scores = {_name(line["step"]): line.get("knn", line["rankme"]) for line in self._lines}
        saved = [encoder for encoder in self._saved() if until is None or _step(encoder) <= until]
        return max(reversed(saved), key=lambda encoder: scores[encoder.name], default=None)

    def _link_best(self) -> None:
        best, link = self._best(), self._out / BEST
        if link.is_dir() and not link.is_symlink():  # what copying a run may make of a link
            shutil.rmtree(link)
        if best is None:
            link.unlink(missing_ok=True)
            return
        fresh = link.with_name(f".{BEST}")
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(best.relative_to(self._out))
        fresh.replace(link)

    def _delete_up_to(self, settled: int) -> None:
        """Of the encoders until that step keep the newest and the best."""
        saved = [encoder for encoder in self._saved() if _step(encoder) <= settled]
        for encoder in saved[: -self._config.keep_encoders]:
            if encoder != self._best(settled):
                _delete(encoder)


_WORTHLESS = {"rankme": 0.0, "uniformity": 0.0, "feature_std": 0.0}
"""Features that are not finite."""


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _step(encoder: Path) -> int:
    return int(encoder.name.removeprefix("step-"))


def _delete(encoder: Path) -> None:
    """First out of sight, so that a kill leaves no half of it."""
    hidden = encoder.with_name(f".{encoder.name}")
    encoder.rename(hidden)
    shutil.rmtree(hidden)
