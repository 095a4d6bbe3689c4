"""The step of a training, on this rank: a method, its optimizer, its schedules and its precision."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from curation.base import rng
from trainers.data import views
from trainers.data.loader import Batch
from trainers.engine.accumulation import backward
from trainers.engine.compilation import compile_backbones
from trainers.engine.config import TrainConfig
from trainers.engine.optimizers import build_optimizer, set_rates, skip_if
from trainers.engine.parallel import average_gradients, clip_gradients, parallelise
from trainers.methods.build import build_method
from trainers.methods.method import Clock, Method, Views
from trainers.models.batch_norm import synchronise_batch_norm
from trainers.models.config import VitConfig
from trainers.models.encoders import InputRange, build_backbone, recompute_activations, without_weights
from trainers.ranks import rank, sum_over_ranks, world_size
from trainers.schedules import cosine, warmup_cosine
from trainers.tensor_memory import to_device


@dataclass(frozen=True)
class StepResult:
    """The result of a step. Every tensor is a scalar on the device that the host has not waited for."""

    loss: Tensor
    scalars: dict[str, Tensor]
    """Further scalars of the method."""
    gradient_norm: Tensor
    """The norm before clipping."""
    good: Tensor
    """1.0, or 0.0 if the loss or the gradient of some rank was not finite, and the step changed nothing."""
    learning_rate: float


class Engine:
    """The training state of this rank, and the step that changes it. The host never waits for the device in a step."""

    def __init__(self, config: TrainConfig, num_samples: int, *, seed: int, device: torch.device) -> None:
        """Build the state for a list of `num_samples`. All ranks do so together, with equal arguments but for the device."""
        self.config, self.seed, self.device = config, seed, device
        bf16 = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self.precision = partial[AbstractContextManager[object]](torch.autocast, device.type, torch.bfloat16, enabled=bf16)
        self.method = self._build()
        synchronise_batch_norm(self.method)
        if config.checkpoint_activations:
            recompute_activations(self.method.student.backbone)
        parallelise(self.method, config.parallel, device, bf16=bf16 and isinstance(config.encoder, VitConfig))
        self.method.begin(num_samples, rng.key(seed, "method"))
        if config.compile or (config.compile is None and device.type == "cuda"):
            compile_backbones(self.method, config)
        self.optimizer = build_optimizer(self.method, config)
        self.inputs = InputRange.of(self.method.encoder)
        groups = self.optimizer.param_groups
        self._trained = [parameter for group in groups for parameter in group["params"]]
        self._prototypes = [parameter for group in groups if group["prototypes"] for parameter in group["params"]]

    def _build(self) -> Method:
        """The method, with its weights on rank 0; other ranks receive them, and make none themselves for a VitConfig."""
        encoder = self.config.encoder
        receives_weights = rank() > 0 and isinstance(encoder, VitConfig)  # timm's models may need real tensors
        with torch.random.fork_rng(devices=[]), torch.device("meta") if receives_weights else nullcontext():
            torch.manual_seed(rng.key(self.seed, "weights") >> 1)
            return build_method(
                self.config.method, lambda: build_backbone(without_weights(encoder) if receives_weights else encoder)
            )

    def views(self, batch: Batch) -> Views:
        """The batch on the device, its crops coloured and normalised."""
        crops = [
            views.colour(
                self.config.views,
                group.to(self.device, non_blocking=True),
                batch.draws,
                first,
                self.inputs.mean,
                self.inputs.std,
            )
            for group, first in ((batch.global_crops, 0), (batch.local_crops, 2))
            if len(group)
        ]
        index, label = (to_device(self.device, array) for array in (batch.index, batch.label))
        return Views(crops, index, label, batch.position)

    def step(self, views: Views, clock: Clock) -> StepResult:
        """Update all weights by the samples of all ranks, or leave all as they are if a loss or gradient is not finite."""
        config, method = self.config, self.method
        rate, frozen = self._rate(clock), method.prototypes_frozen(clock)
        set_rates(self.optimizer, rate, self._weight_decay(clock), prototypes_frozen=frozen)
        output = backward(
            method,
            views,
            clock,
            pieces=config.accumulation,
            seed=lambda piece: torch.manual_seed(rng.key(self.seed, "layers", clock.step, rank(), piece) >> 1),
            precision=self.precision,
            recomputes=config.checkpoint_activations,
        )
        average_gradients(self._trained)
        if frozen:  # prototypes then count neither in the norm nor in the optimizer's moments
            torch._foreach_zero_([parameter.grad for parameter in self._prototypes])
        norm = clip_gradients(self._trained, config.clip_gradient)
        good = (norm.isfinite() & output.loss.detach().isfinite()).float()
        good = (sum_over_ranks(good) == world_size()).float()
        skip_if(self.optimizer, good == 0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        method.after_step(clock, good, output.remember)
        return StepResult(output.loss.detach(), output.scalars, norm, good, rate)

    def warmup(self, clock: Clock) -> float:
        """The number of steps in which the learning rate rises: at most half of all."""
        return min(self.config.warmup_epochs * clock.steps_per_epoch, clock.total_steps / 2)

    def _rate(self, clock: Clock) -> float:
        config = self.config
        peak = config.learning_rate * config.global_batch_size / 256
        return warmup_cosine(clock.step, clock.total_steps, self.warmup(clock), peak, config.final_learning_rate)

    def _weight_decay(self, clock: Clock) -> float:
        return cosine(clock.step, clock.total_steps, self.config.weight_decay, self.config.final_weight_decay)
