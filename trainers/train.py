"""The train loop, and only the loop."""

import json
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from curation import rng
from curation.errors import DataError
from curation.files import write_atomic
from trainers import checkpoint, views
from trainers.config import TrainConfig
from trainers.data import Batch, Loader, SampleList
from trainers.distributed import sum_over_ranks, synchronise_batch_norm, world_size
from trainers.encoders import Encoder, InputRange, build_backbone
from trainers.methods import Clock, Method, build_method
from trainers.schedules import cosine, warmup_cosine

METRICS, CHECKPOINTS = "metrics.jsonl", "checkpoints"


@dataclass(frozen=True)
class TrainProgress:
    """What the loop reports every `log_every` steps."""

    step: int
    total_steps: int
    loss: float
    images_per_second: float


def train(
    config: TrainConfig,
    samples: SampleList,
    out: Path,
    *,
    seed: int,
    rank: int = 0,
    device: torch.device | None = None,
    init_from: Path | None = None,
) -> Iterator[TrainProgress]:
    """Train on this rank of the current process group; iterate to the end to get there.

    Continues from the newest checkpoint in `out`, else starts from the checkpoint `init_from`, else from nothing. Rank 0
    writes checkpoints, `metrics.jsonl` (a line per step) and at the end the encoder. The samples of every step depend on
    `seed` and the global batch size only.
    """
    device = device or torch.device("cpu")
    loader = Loader(
        samples,
        config.views,
        seed=seed,
        global_batch_size=config.global_batch_size,
        rank=rank,
        world_size=world_size(),
        threads=config.threads,
    )
    steps_per_epoch = loader.epoch_size / config.global_batch_size
    total_steps = max(1, math.ceil(config.epochs * steps_per_epoch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "weights") >> 1)
        method: Method = build_method(config.method, lambda: build_backbone(config.encoder))  # type: ignore[assignment]
    assert isinstance(method, nn.Module)
    synchronise_batch_norm(method)
    method.to(device)
    optimizer = torch.optim.AdamW(_parameter_groups(method.student), lr=0.0, fused=device.type == "cuda")

    step = 0
    if state := checkpoint.newest(out / CHECKPOINTS, device):
        step = int(state["step"])
        method.load_state_dict(state["method"])
        optimizer.load_state_dict(state["optimizer"])
    elif init_from is not None:
        _start_from(method, init_from, device)
    log = _MetricLog(out / METRICS if rank == 0 else None, keep_until=step)
    student = DistributedDataParallel(method.student) if world_size() > 1 else method.student
    inputs = InputRange.of(method.encoder)
    bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")

    method.train()
    began, began_at = time.perf_counter(), step
    for batch in loader.batches(step, total_steps - step):
        clock = Clock(step, total_steps, steps_per_epoch)
        rate = _set_rates(optimizer, config, clock)
        crops = _crops(config, batch, inputs, device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            output = method.step(student, crops, clock)
        optimizer.zero_grad()
        output.loss.backward()
        for parameter in method.frozen(clock):
            parameter.grad = None
        norm = nn.utils.clip_grad_norm_(method.student.parameters(), config.clip_gradient)
        optimizer.step()
        method.after_step(clock)
        step += 1
        log.add({"loss": output.loss.detach(), **output.scalars}, {"step": step, "learning_rate": rate, "gradient_norm": norm})

        saves = step % config.checkpoint_every == 0 or step == total_steps
        if saves or step % config.log_every == 0:
            loss = log.flush()
            if saves and rank == 0:
                state = {"step": step, "method": method.state_dict(), "optimizer": optimizer.state_dict()}
                checkpoint.save(out / CHECKPOINTS, step, state)
            pace = (step - began_at) * config.global_batch_size / (time.perf_counter() - began)
            yield TrainProgress(step, total_steps, loss, pace)
    if rank == 0:
        Encoder(config.encoder, method.encoder).save(out)


def _start_from(method: nn.Module, path: Path, device: torch.device) -> None:
    """Give `method` the weights of another training. Raises DataError if that one was made otherwise."""
    try:
        method.load_state_dict(checkpoint.load(path, device)["method"])
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"The training of {path} had another method or encoder, so this one cannot start from it. Give both the same "
            f"train.method and train.encoder, or start without it. ({error})"
        ) from error


def _parameter_groups(student: nn.Module) -> list[dict[str, object]]:
    """Weight decay for matrices, none for biases and norms."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "decays": True},
        {"params": [p for p in parameters if p.ndim <= 1], "decays": False, "weight_decay": 0.0},
    ]


def _set_rates(optimizer: torch.optim.Optimizer, config: TrainConfig, clock: Clock) -> float:
    """Write this step's learning rate and weight decay into the optimizer; returns the learning rate."""
    peak = config.learning_rate * config.global_batch_size / 256
    warmup = min(config.warmup_epochs * clock.steps_per_epoch, clock.total_steps / 2)
    rate = warmup_cosine(clock.step, clock.total_steps, warmup, peak, config.final_learning_rate)
    decay = cosine(clock.step, clock.total_steps, config.weight_decay, config.final_weight_decay)
    for group in optimizer.param_groups:
        group["lr"] = rate
        if group["decays"]:
            group["weight_decay"] = decay
    return rate


def _crops(config: TrainConfig, batch: Batch, inputs: InputRange, device: torch.device) -> list[Tensor]:
    """The batch's crops on the device, coloured and normalised: global ones, then local ones if there are any."""
    groups = [(batch.global_crops, 0), (batch.local_crops, 2)]
    return [
        inputs.normalize(views.colour(config.views, group.to(device, non_blocking=True), batch.draws, first))
        for group, first in groups
        if len(group)
    ]


class _MetricLog:
    """One JSON line per step. Numbers stay on the device until a flush, so that steps do not wait for them."""

    def __init__(self, path: Path | None, keep_until: int) -> None:
        self._path = path
        self._scalars: list[dict[str, Tensor]] = []
        self._known: list[dict[str, object]] = []
        if path is not None:
            # Steps after the checkpoint are about to be repeated; a last line may be torn.
            lines = path.read_text().splitlines(keepends=True)[:keep_until] if path.exists() else []
            write_atomic(path, "".join(lines))

    def add(self, scalars: dict[str, Tensor], known: dict[str, object]) -> None:
        """Remember one step: `scalars` are averaged over ranks at the flush, `known` are alike on all of them."""
        self._scalars.append(scalars)
        self._known.append(known)

    def flush(self) -> float:
        """Average over ranks, write, and return the last loss. Raises DataError if a loss is not finite."""
        names = list(self._scalars[0])
        table = torch.stack([torch.stack([row[name].float() for name in names]) for row in self._scalars])
        table = sum_over_ranks(table) / world_size()
        rows = [
            {
                name: value.item() if isinstance(value, Tensor) else value
                for name, value in {**known, **dict(zip(names, values, strict=True))}.items()
            }
            for known, values in zip(self._known, table.cpu(), strict=True)
        ]
        self._scalars, self._known = [], []
        for row in rows:
            if not math.isfinite(row["loss"]):
                raise DataError(
                    f"The loss became {row['loss']} at step {row['step']}. Lower train.learning_rate or raise "
                    "train.warmup_epochs, and run again with --redo."
                )
        if self._path is not None:
            with self._path.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
                file.flush()
                os.fsync(file.fileno())  # a checkpoint may follow, which counts on these lines
        return float(rows[-1]["loss"])
