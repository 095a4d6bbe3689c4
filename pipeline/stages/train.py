"""train: self-supervised pretraining on the selection, one process a rank."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from curation.base.errors import ConfigError, DataError
from pipeline.artifacts.encoders import weights_by_content
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples
from pipeline.artifacts.selection import SelectedRows
from pipeline.artifacts.training import Training, metrics
from pipeline.errors import StoppedError
from pipeline.runtime.executor import fixed_number_of_ranks
from pipeline.stages.costs import encoder_cost, train_flops
from pipeline.stages.evaluation_set import evaluation_set
from pipeline.stages.stage import Estimate, Input, Stage, StageContext, StageOutput
from trainers.data.mapped_list import TrainingList, map_lists
from trainers.engine.config import TrainConfig
from trainers.engine.progress import TrainProgress
from trainers.engine.tensorboard import TensorBoard, require_package
from trainers.evaluation.config import EvaluateConfig
from trainers.output_files import BEST, CHECKPOINTS, DESCRIPTION, ENCODERS, EVALUATIONS, METRICS, WEIGHTS, newest_checkpoint

_WORTH_SAYING = 0.1
_MAX_EVALUATED = 4096
"""Samples of the pool, and of the held-out split, that encoders are measured on while they train."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Train(Stage):
    """The encoder (safetensors), the last checkpoint, and the metrics of every step.

    With the input "previous" training starts from that artifact's checkpoint. Where `config` asks for evaluations on the way,
    `evaluate` says how; they and the encoders saved at them are for people, later stages take the last encoder.
    """

    config: TrainConfig
    seed: int
    evaluate: EvaluateConfig
    name = "train"
    makes = Training
    inputs: ClassVar[Mapping[str, Input]] = {
        "samples": Input(Samples, made_into=("selection",)),
        "selection": Input(SelectedRows),
        "previous": Input(Training, optional=True),
    }

    def settings(self) -> dict[str, Any]:
        fields = weights_by_content(self.config.fingerprint_fields(), self.config.encoder)
        if self.config.mix:
            opened = [(Samples.open(o.samples), SelectedRows.open(o.selection), o.weight) for o in self.config.mix]
            fields["mix"] = [[samples.fingerprint, selection.fingerprint, weight] for samples, selection, weight in opened]
        return {"seed": self.seed, **fields}

    def check(self) -> None:
        if self.config.tensorboard:
            require_package()

    def make(self, context: StageContext) -> StageOutput:
        samples: Samples = context.inputs["samples"]
        training_list = context.inputs["selection"].training_list()
        for other in self.config.mix:
            SelectedRows.open(other.selection).training_list()
        init_from = context.inputs["previous"].checkpoint() if "previous" in context.inputs else None
        stop_file = context.scratch / "stop"
        max_samples = min(self.evaluate.max_samples, _MAX_EVALUATED)
        evaluate = self.evaluate.model_copy(update={"max_samples": max_samples}) if self.config.evaluate_every else None
        args = (self.config, training_list, samples.directory, context.out, self.seed, init_from, stop_file, evaluate)
        last = self._follow(context, stop_file, *args)
        if last is not None and not last.finished:
            raise StoppedError(f"Saved at step {last.step:,} of {last.total_steps:,}, as a signal asked.")
        return self._output(context.out, last)

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        config, selection, samples = self.config, inputs["selection"], inputs["samples"]
        mixed = sum(SelectedRows.open(other.selection).statistics["selected"] for other in config.mix)
        exposures = config.epochs * (selection.rows + mixed)
        crops = 2 + config.views.num_local
        flops, decodes = exposures * train_flops(config), round(exposures * (1 + crops / 4))
        cost, dim = encoder_cost(config.encoder)
        if config.evaluate_every:
            times = config.epochs / config.evaluate_every + 1
            most = min(self.evaluate.max_samples, _MAX_EVALUATED)
            measured = round(times * (min(samples.rows, most) + min(samples.held_out, most)))
            flops, decodes = flops + measured * cost, decodes + measured
        return Estimate(selection.rows, dim=dim, parts=4, flops=flops, decodes=decodes)

    def describe(self, manifest: Manifest) -> str:
        s = manifest.statistics
        best = f", best encoder after {s['best']['step']:,}" if "best" in s else ""
        return f"{s['steps']:,} steps, loss {s['final_loss']:.3f}{best}"

    def progress(self, out: Path) -> str:
        steps = sum(1 for _ in metrics(out))
        return f"step {steps:,}" if steps else super().progress(out)

    def _follow(self, context: StageContext, stop_file: Path, *args: object) -> TrainProgress | None:
        """Train, and tell how it goes; the last that was told."""
        ranks, console = self._num_ranks(context), context.executor.console
        board = TensorBoard(context.out) if self.config.tensorboard else None
        last: TrainProgress | None = None
        verdict = ""
        with console.progress("train", 0, "steps") as meter, stop_file_on_signal(stop_file):
            for last in context.ranks(train_rank, ranks, *args):
                note = f"{last.images_per_second:,.0f} images/s, loss {last.loss:.3f}"
                if last.waiting > _WORTH_SAYING:
                    note += f", {last.waiting:.0%} of the time waiting for samples"
                meter.move(last.step, last.total_steps, note)
                if last.health.advice and last.health.verdict != verdict:
                    console.say(f"  {last.health.verdict}: {last.health.advice}")
                verdict = last.health.verdict
                for line in last.evaluations:
                    console.say(f"  step {line['step']:,} (epoch {line['epoch']:.4g}): {in_words(line)}")
                if board:
                    board.update()
        return last

    def _output(self, out: Path, last: TrainProgress | None) -> StageOutput:
        losses = [line["loss"] for line in metrics(out)]
        steps = len(losses)
        if last is not None and last.step != steps:
            raise DataError(
                f"{out / METRICS} has {steps:,} lines after {last.step:,} steps: something else wrote to it. See that "
                f"no other process trains into {out}, delete that directory, and run again."
            )
        newest = newest_checkpoint(out / CHECKPOINTS)
        assert newest is not None
        for old in (out / CHECKPOINTS).iterdir():
            if old != newest:
                shutil.rmtree(old)
        paths = [f"{CHECKPOINTS}/{newest.name}/{file.name}" for file in sorted(newest.iterdir())]
        paths += [str(file.relative_to(out)) for file in sorted((out / ENCODERS).glob("step-*/*"))]
        lines = {METRICS: steps}
        statistics: dict[str, Any] = {"steps": steps, "samples_seen": steps * self.config.global_batch_size}
        statistics["final_loss"] = losses[-1]
        if (out / BEST).exists():
            evaluations = [json.loads(line) for line in (out / EVALUATIONS).open()]
            best = (out / BEST).resolve().name
            statistics["best"] = next(line for line in evaluations if f"step-{line['step']:08d}" == best)
            lines[EVALUATIONS] = len(evaluations)
        paths += [*lines, WEIGHTS, DESCRIPTION]
        return StageOutput([Part.describe(out, path, lines.get(path, 0)) for path in paths], statistics)

    def _num_ranks(self, context: StageContext) -> int:
        ranks = fixed_number_of_ranks(self.config.ranks, context.executor, context.resources)
        if self.config.global_batch_size % ranks:
            raise ConfigError(
                f"train.global_batch_size {self.config.global_batch_size} is not a multiple of the {ranks} ranks this "
                "cluster gives. Change it, or set train.ranks; the result depends on the global batch size only."
            )
        return ranks


def in_words(scores: dict[str, Any]) -> str:
    """The scores of an encoder that tell most."""
    knn = f"kNN {scores['knn']:.1%}, " if "knn" in scores else ""
    return f"{knn}RankMe {scores['rankme']:.1f}"


@contextmanager
def stop_file_on_signal(stop_file: Path) -> Iterator[None]:
    """While this lasts, SIGTERM, SIGUSR1 and SIGUSR2 make `stop_file`, which the ranks look for, instead of ending the process.

    Schedulers send them before they take a machine away.
    """
    stop_file.parent.mkdir(parents=True, exist_ok=True)
    stop_file.unlink(missing_ok=True)
    if threading.current_thread() is not threading.main_thread():  # only that one may listen
        yield
        return
    before = {number: signal.signal(number, lambda *_: stop_file.touch()) for number in _STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train_rank(
    config: TrainConfig,
    training_list: Path,
    samples: Path,
    out: Path,
    seed: int,
    init_from: Path | None,
    stop_file: Path,
    evaluate: EvaluateConfig | None,
) -> Iterator[TrainProgress]:
    """One rank of the training."""
    from curation.base.device import default_device
    from trainers.engine.train import train

    rest = 1 - sum(other.weight for other in config.mix)
    lists = [TrainingList(training_list, samples, rest)]
    lists += [TrainingList(SelectedRows.open(o.selection).training_list(), o.samples, o.weight) for o in config.mix]
    listed = map_lists(lists, stop_file.parent, config.label)
    yield from train(
        config,
        listed,
        out,
        seed=seed,
        device=default_device(),
        init_from=init_from,
        stop_file=stop_file,
        evaluation_set=evaluation_set(evaluate, seed, Samples.open(samples)) if evaluate else None,
    )
