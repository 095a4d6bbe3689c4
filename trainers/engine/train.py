"""The train loop, and only the loop."""

import json
import math
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from curation.base.errors import DataError
from curation.base.files import explained, write_atomic
from trainers.data.loader import Batch, Loader
from trainers.data.samples import SampleList
from trainers.engine import checkpoint
from trainers.engine.checkpoint import Checkpoints
from trainers.engine.collapse import FeatureSpread, Health, TeacherUse, judge
from trainers.engine.config import TrainConfig
from trainers.engine.progress import TrainProgress
from trainers.engine.step import Engine
from trainers.engine.stop_flag import StopFlag
from trainers.evaluation.during_training import Evaluations
from trainers.evaluation.knn import EvaluationSet, label_free
from trainers.methods.config import ClassifyConfig
from trainers.methods.method import Clock
from trainers.models.encoders import export, without_weights
from trainers.output_files import CHECKPOINTS, METRICS, newest_checkpoint
from trainers.ranks import full_state, rank, sum_over_ranks, world_size

_MAX_BAD_STEPS = 3
_MAX_ROLLBACKS = 3


class _DivergedError(Exception):
    """Several steps in a row had a loss or gradient that is not finite."""


def train(
    config: TrainConfig,
    samples: SampleList,
    out: Path,
    *,
    seed: int,
    device: torch.device | None = None,
    init_from: Path | None = None,
    stop_file: Path | None = None,
    evaluation_set: EvaluationSet | None = None,
) -> Iterator[TrainProgress]:
    """Train on this rank of the current process group; the training advances as the iterator does.

    Continues from the newest checkpoint in `out`, else starts from the checkpoint `init_from`, else from nothing. Rank 0
    writes `metrics.jsonl` (a line per step) and at the end the encoder. The samples of every step depend on `seed` and the
    global batch size only. A step whose loss or gradient is not finite changes nothing; after several in a row training goes
    back to its last checkpoint and skips the samples that led there. Raises DataError if that does not help.

    With `train.evaluate_every` the encoder is evaluated on `evaluation_set` at that interval
    (`trainers.evaluation.during_training`). Once rank 0 finds `stop_file`, all ranks save at the end of the next step and
    return; `finished` of the last progress is then false.
    """
    device = device or torch.device("cpu")
    first_shown = 0
    for rollback in range(_MAX_ROLLBACKS + 1):
        training = _Training(config, samples, out, seed, device, init_from, first_shown, stop_file, evaluation_set)
        try:
            yield from training.steps()
            return
        except _DivergedError as error:
            first_shown = training.step + training.skipped_steps
            if rollback == _MAX_ROLLBACKS or newest_checkpoint(out / CHECKPOINTS) is None:
                raise DataError(
                    f"{error} Lower train.learning_rate or raise train.warmup_epochs, and run again with --redo."
                ) from None


class _Training:
    """One attempt: from a checkpoint, or from the start, to the end."""

    def __init__(
        self,
        config: TrainConfig,
        samples: SampleList,
        out: Path,
        seed: int,
        device: torch.device,
        init_from: Path | None,
        first_shown: int,
        stop_file: Path | None,
        evaluation_set: EvaluationSet | None,
    ) -> None:
        """`first_shown` is the step of the sample stream before which no sample may be shown (again)."""
        self.config, self.out, self.device = config, out, device
        self.loader = Loader(
            samples,
            config.views,
            seed=seed,
            global_batch_size=config.global_batch_size,
            rank=rank(),
            world_size=world_size(),
            workers=config.workers,
            order=config.order,
            max_bad_fraction=config.max_bad_fraction,
            max_resident_bytes=int(config.resident_gib * 2**30),
            device=device,
        )
        _check_labels(config, samples)
        self.steps_per_epoch = self.loader.epoch_size / config.global_batch_size
        self.total_steps = max(1, math.ceil(config.epochs * self.steps_per_epoch))
        newest = newest_checkpoint(out / CHECKPOINTS)
        fresh = newest is None and init_from is None
        start = config if fresh else config.model_copy(update={"encoder": without_weights(config.encoder)})
        self.engine = Engine(start, len(samples), seed=seed, device=device)
        self.step = self.skipped_steps = 0
        if newest is not None:
            facts = checkpoint.restore(newest, self.engine.method, self.engine.optimizer)
            self.step = facts["step"]
            self.skipped_steps = max(facts["passed_over"], first_shown - self.step)
        elif init_from is not None:
            self._start_from(init_from)
        self.stop = StopFlag(stop_file)
        self.log = _MetricLog(out / METRICS, keep_until=self.step)
        self.evaluations = Evaluations(
            out,
            config.encoder,
            evaluation_set,
            evaluate_every=config.evaluate_every,
            keep_encoders=config.keep_encoders,
            steps_per_epoch=self.steps_per_epoch,
            total_steps=self.total_steps,
            first_step=self.step,
            device=device,
        )

    def steps(self) -> Iterator[TrainProgress]:
        """Train to the end."""
        method = self.engine.method
        checkpoints = Checkpoints(self.out / CHECKPOINTS)
        method.train()
        if self.step == 0:
            self._evaluate()
            epoch = math.ceil(self.steps_per_epoch)
            method.before_first_step(lambda: map(self.engine.views, self.loader.batches(0, epoch)))
        try:
            yield from self._steps(checkpoints)
        except (_DivergedError, GeneratorExit):  # on all ranks; after an error on one, nobody may wait for the others
            checkpoints.finish()
            raise
        checkpoints.finish()
        if self.step == self.total_steps:
            self.evaluations.finish()
            weights = full_state(method.encoder)
            if rank() == 0:
                with explained("The encoder", self.out):
                    export(self.config.encoder, weights, self.out)

    def _steps(self, checkpoints: Checkpoints) -> Iterator[TrainProgress]:
        config, engine = self.config, self.engine
        bad_in_a_row = torch.zeros((), device=self.device)
        began, began_at = time.perf_counter(), self.step
        reported, waited = began, 0.0
        for batch in self._batches():
            clock = Clock(self.step, self.total_steps, self.steps_per_epoch)
            if self.step and int(clock.epoch) > int((self.step - 1) / self.steps_per_epoch):
                engine.method.before_epoch(int(clock.epoch))
            result = engine.step(engine.views(batch), clock)
            bad_in_a_row = (bad_in_a_row + 1) * (1 - result.good)
            self.step += 1
            self.log.add(
                {
                    "loss": result.loss,
                    **result.scalars,
                    "bad_in_a_row": bad_in_a_row,
                    "replaced": torch.full((), float(len(batch.replaced) * world_size()), device=self.device),
                },
                {"step": self.step, "learning_rate": result.learning_rate, "gradient_norm": result.gradient_norm},
            )
            paused = self._evaluate()
            began, reported = began + paused, reported + paused

            stops = self.stop.is_set()
            saves = stops or self.step % config.checkpoint_every == 0 or self.step == self.total_steps
            if saves or self.step % config.log_every == 0:
                loss, health = self._write_log(clock)
                if saves:
                    facts = {"passed_over": self.skipped_steps}
                    checkpoints.save(self.step, engine.method, engine.optimizer, facts)
                now = time.perf_counter()
                pace = (self.step - began_at) * config.global_batch_size / (now - began)
                waiting = (self.loader.waited - waited) / (now - reported)
                reported, waited = now, self.loader.waited
                evaluations = tuple(self.evaluations.new_lines())
                yield TrainProgress(self.step, self.total_steps, loss, pace, health, waiting, evaluations)
            if stops:
                return

    def _evaluate(self) -> float:
        """Evaluate the encoder if it is due, before the checkpoint of the same step; returns the seconds that it took."""
        began = time.perf_counter()
        if self.evaluations.due(self.step):
            self.evaluations.measure(self.step, self.engine.method.encoder, checkpoint.newest_step(self.out / CHECKPOINTS))
        return time.perf_counter() - began

    def _batches(self) -> Iterator[Batch]:
        """The batches of the remaining steps, with the crop sizes of each step's stage."""
        stages = [(round(begins * self.total_steps), views) for begins, views in self.config.views_from()]
        ends = [*(begin for begin, _ in stages[1:]), self.total_steps]
        for (_, views), end in zip(stages, ends, strict=True):
            sizes = (views.global_size, views.local_size)
            yield from self.loader.batches(self.step + self.skipped_steps, end - self.step, sizes)

    def _write_log(self, clock: Clock) -> tuple[float, Health]:
        """Write the steps since the last call to the log; returns the last loss and the health of the training.

        Raises _DivergedError after too many bad steps in a row.
        """
        rows = self.log.gathered()
        features = self.engine.method.student.features.float().cpu().numpy()
        spread = label_free(features, rng_key=0) if np.isfinite(features).all() else {"rankme": 0.0, "feature_std": 0.0}
        health = self._health(rows[-1], clock, FeatureSpread(spread["rankme"], spread["feature_std"], *features.shape))
        rows[-1] |= {"rankme": spread["rankme"], "feature_std": spread["feature_std"], "verdict": health.verdict}
        self.log.write(rows)
        worst = max(rows, key=lambda row: row["bad_in_a_row"])
        if worst["bad_in_a_row"] >= _MAX_BAD_STEPS:
            raise _DivergedError(
                f"The loss or the gradient was not finite in {worst['bad_in_a_row']:.0f} steps in a row, until step "
                f"{worst['step']}."
            )
        return rows[-1]["loss"], health

    def _health(self, row: dict[str, Any], clock: Clock, spread: FeatureSpread) -> Health:
        use = None
        if "prototypes_used" in row:
            rows, prototypes = 2 * self.config.global_batch_size // world_size(), self.config.method.prototypes  # type: ignore[union-attr]
            use = TeacherUse(row["assignment_entropy"], row["prototype_perplexity"], row["prototypes_used"], rows, prototypes)
        return judge(self.step, self.engine.warmup(clock), use, spread, self.config.method)

    def _start_from(self, path: Path) -> None:
        """Take the weights of another training. Raises DataError if its method or encoder is a different one."""
        try:
            checkpoint.restore(path, self.engine.method)
        except KeyError as error:
            raise DataError(
                f"The training of {path} had another method or encoder, so this one cannot start from it. Give both the same "
                f"train.method and train.encoder, or start without it. ({error})"
            ) from error


def _check_labels(config: TrainConfig, samples: SampleList) -> None:
    """Raise DataError if a classifier has no output for some label."""
    if isinstance(config.method, ClassifyConfig) and samples.label is not None:
        largest = int(samples.label.max(initial=0))
        if samples.label.min(initial=0) < 0 or largest >= config.method.classes:
            raise DataError(
                f"train.method.classes is {config.method.classes}, but the labels of column {config.label} run to {largest}. "
                f"Set train.method.classes={largest + 1}, or choose a coarser level."
            )


class _MetricLog:
    """The metrics file, a JSON line per step. Numbers stay on the device until a flush, so that steps do not wait for them."""

    def __init__(self, path: Path, keep_until: int) -> None:
        self._path = path
        self._scalars: list[dict[str, Tensor]] = []
        self._host_values: list[dict[str, object]] = []
        if rank() == 0:
            # Steps after the checkpoint are about to be repeated; a last line may be torn.
            lines = path.read_text().splitlines(keepends=True)[:keep_until] if path.exists() else []
            write_atomic(path, "".join(lines))

    def add(self, scalars: dict[str, Tensor], host_values: dict[str, object]) -> None:
        """Remember one step: `scalars` are averaged over ranks at the flush, `host_values` are the same on all ranks."""
        self._scalars.append(scalars)
        self._host_values.append(host_values)

    def gathered(self) -> list[dict[str, Any]]:
        """A row for each step since the last call, averaged over ranks."""
        names = list(self._scalars[0])
        table = torch.stack([torch.stack([row[name].float() for name in names]) for row in self._scalars])
        table = sum_over_ranks(table) / world_size()
        rows = [
            {
                name: value.item() if isinstance(value, Tensor) else value
                for name, value in {**on_host, **dict(zip(names, values, strict=True))}.items()
            }
            for on_host, values in zip(self._host_values, table.cpu(), strict=True)
        ]
        self._scalars, self._host_values = [], []
        return rows

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append the rows to the file; numbers that are not finite become null."""
        if rank() == 0:
            with explained("The metrics", self._path.parent), self._path.open("a") as file:
                for row in rows:
                    file.write(json.dumps({name: _or_none(value) for name, value in row.items()}) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint may follow, which counts on these lines


def _or_none(value: Any) -> Any:
    return value if not isinstance(value, float) or math.isfinite(value) else None
