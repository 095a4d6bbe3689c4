"""train: self-supervised pretraining on the selection, one process a rank."""

import json
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from curation.base.errors import ConfigError, DataError, StoppedError
from pipeline.artifacts.manifest import Part, by_content, identity, read_kind
from pipeline.stages.evaluate import evaluation_set
from pipeline.stages.select import SELECTION, TRAINING
from pipeline.stages.stage import Made, Work
from trainers.config import EvaluateConfig, TrainConfig
from trainers.data.samples import SampleList
from trainers.engine.layout import BEST, CHECKPOINTS, DESCRIPTION, ENCODERS, EVALUATIONS, METRICS, WEIGHTS, newest_checkpoint
from trainers.engine.progress import TrainProgress
from trainers.engine.tensorboard import TensorBoard

if TYPE_CHECKING:
    from trainers.evaluation.knn import EvaluationSet

_WORTH_SAYING = 0.1
EVALUATED = 4096
"""Samples that encoders are measured on while they train, of the pool and of the held-out split each, at the most."""
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Train:
    """The encoder (safetensors), the last checkpoint, and the metrics of every step.

    With an input named "previous" training starts from that artifact's checkpoint. Where `config` asks for evaluations on the
    way, `evaluate` says how; they and the encoders saved at them are for people, later stages take the last encoder.
    """

    config: TrainConfig
    seed: int
    evaluate: EvaluateConfig
    kind = "training"

    def settings(self) -> dict[str, Any]:
        mix = [[identity(other.samples), identity(other.selection), other.weight] for other in self.config.mix]
        return {"seed": self.seed, **by_content(self.config.fingerprint_fields()), "mix": mix}

    def make(self, work: Work) -> Made:
        samples, selection = work.inputs["samples"], work.inputs["selection"]
        previous = work.inputs.get("previous")
        for images, chosen in ((samples, selection), *((other.samples, other.selection) for other in self.config.mix)):
            if not (chosen / TRAINING).exists() and (chosen / SELECTION).exists():
                raise DataError(f"{chosen} has no training list. Select again with --samples.")
            read_kind(images, "samples")
            read_kind(chosen, "selection")
        if previous:
            read_kind(previous, "training")
        ranks = self.num_ranks(work)
        init_from = newest_checkpoint(previous / CHECKPOINTS) if previous else None
        if previous and init_from is None:
            raise DataError(f"{previous} has no checkpoint left to start from. Train it again, or start without it.")
        stop_file = work.scratch / "stop"
        evaluated_on = None
        if self.config.evaluate_every:
            few = self.evaluate.model_copy(update={"max_samples": min(self.evaluate.max_samples, EVALUATED)})
            evaluated_on = work.runtime.call(evaluation_set, few, self.seed, samples, gpu=False)
        args = (self.config, selection / TRAINING, samples, work.out, self.seed, init_from, stop_file, evaluated_on)
        board = TensorBoard(work.out) if self.config.tensorboard else None
        last: TrainProgress | None = None
        told = ""
        with work.runtime.console.progress("train", 0, "steps") as meter, signals_make(stop_file):
            for last in work.runtime.ranks(train_rank, ranks, *args, gpu=True):
                note = f"{last.images_per_second:,.0f} images/s, loss {last.loss:.3f}"
                if last.waiting > _WORTH_SAYING:
                    note += f", {last.waiting:.0%} of the time waiting for samples"
                meter.move(last.step, last.total_steps, note)
                if last.health.advice and last.health.verdict != told:
                    work.runtime.console.say(f"  {last.health.verdict}: {last.health.advice}")
                told = last.health.verdict
                for line in last.evaluations:
                    work.runtime.console.say(f"  step {line['step']:,} (epoch {line['epoch']:.4g}): {in_words(line)}")
                if board:
                    board.follow()
        if last is not None and not last.finished:
            raise StoppedError(f"Saved at step {last.step:,} of {last.total_steps:,}, as a signal asked.")
        losses = [json.loads(line)["loss"] for line in (work.out / METRICS).open()]
        steps = len(losses)
        if last is not None and last.step != steps:
            raise DataError(
                f"{work.out / METRICS} has {steps:,} lines after {last.step:,} steps: something else wrote to it. See that "
                f"no other process trains into {work.out}, delete that directory, and run again."
            )
        newest = newest_checkpoint(work.out / CHECKPOINTS)
        assert newest is not None
        for old in (work.out / CHECKPOINTS).iterdir():
            if old != newest:
                shutil.rmtree(old)
        paths = [f"{CHECKPOINTS}/{newest.name}/{file.name}" for file in sorted(newest.iterdir())]
        paths += [str(file.relative_to(work.out)) for file in sorted((work.out / ENCODERS).glob("step-*/*"))]
        lines = {METRICS: steps}
        statistics: dict[str, Any] = {"steps": steps, "samples_seen": steps * self.config.global_batch_size}
        statistics["final_loss"] = losses[-1]
        if (work.out / BEST).exists():
            evaluations = [json.loads(line) for line in (work.out / EVALUATIONS).open()]
            best = (work.out / BEST).resolve().name
            statistics["best"] = next(line for line in evaluations if f"step-{line['step']:08d}" == best)
            lines[EVALUATIONS] = len(evaluations)
        paths += [*lines, WEIGHTS, DESCRIPTION]
        return Made([Part.of(work.out, path, lines.get(path, 0)) for path in paths], statistics)

    def num_ranks(self, work: Work) -> int:
        """As configured, else one for each GPU, else one."""
        gpus = int(work.runtime.resources().get("GPU", 0))
        ranks = self.config.ranks or gpus or 1
        if gpus and ranks > gpus:
            raise ConfigError(f"train.ranks is {ranks}, but there are {gpus} GPUs. A GPU serves one rank: set fewer, or none.")
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
def signals_make(stop_file: Path) -> Iterator[None]:
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
    evaluated_on: "EvaluationSet | None",
) -> Iterator[TrainProgress]:
    """One rank of the training."""
    from curation.distance.nearest import default_device
    from trainers.engine.train import train

    listed = SampleList.read(training_list, samples, config.label)
    if config.mix:
        others = [(SampleList.read(o.selection / TRAINING, o.samples, config.label), o.weight) for o in config.mix]
        listed = SampleList.mix([(listed, 1 - sum(weight for _, weight in others)), *others])
    yield from train(
        config,
        listed,
        out,
        seed=seed,
        device=default_device(),
        init_from=init_from,
        stop_file=stop_file,
        evaluated_on=evaluated_on,
    )
