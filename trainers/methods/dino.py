"""DINO: self-distillation with no labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.distributed import sum_over_ranks, world_size
from trainers.heads import NestedPrototypes, Network, dino_projector, nested_projector
from trainers.losses import swapped_cross_entropy, use_of_prototypes
from trainers.method import Clock, Method, StepOutput, Views, copy_of, follow, rising
from trainers.method_config import DinoConfig
from trainers.schedules import linear


class Dino(Method):
    center: Tensor

    def __init__(self, config: DinoConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config

        def network() -> Network:
            encoder = backbone()
            return Network(
                encoder,
                nested_projector(
                    encoder, config.nested, lambda dim: dino_projector(dim, config.hidden_dim, config.bottleneck_dim)
                ),
            )

        self.student = network()
        self.teacher = copy_of(self.student, network)
        self.prototypes = NestedPrototypes(config.bottleneck_dim, config.prototypes, config.nested)
        self.teacher_prototypes = NestedPrototypes(config.bottleneck_dim, config.prototypes, config.nested)
        self.teacher_prototypes.load_state_dict(self.prototypes.state_dict())
        self.teacher_prototypes.requires_grad_(False)
        self.register_buffer("center", torch.zeros(self.prototypes.total))

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        config = self.config
        temperature = linear(
            clock.epoch, config.teacher_warmup_epochs, config.teacher_temperature_start, config.teacher_temperature
        )
        losses, means, use = [], [], dict[str, Tensor]()
        centers = self.prototypes.split(self.center)
        for level, (own, other) in enumerate(zip(self.prototypes, self.teacher_prototypes, strict=True)):
            with torch.no_grad():
                scores = other(self.prototypes.part(targets[0], level)).float()
                told = F.softmax((scores - centers[level]) / temperature, dim=-1)
                means.append(scores.mean((0, 1)))
            seen = F.normalize(self.prototypes.part(outputs[0], level).float(), dim=-1)
            losses.append(swapped_cross_entropy(seen, own.directions(), told, config.student_temperature))
            use = use or use_of_prototypes(told)
        self._mean = torch.cat(means)
        return StepOutput(torch.stack(losses).sum(), use)

    def prototypes_frozen(self, clock: Clock) -> bool:
        return clock.epoch < self.config.freeze_prototypes_epochs

    def momentum(self, clock: Clock) -> float:
        return rising(clock, self.config.momentum)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor) -> None:
        super().after_step(clock, good)
        follow(self.teacher_prototypes, self.prototypes, (1 - self.momentum(clock)) * good)
        # The exponential moving average of the teacher's mean score over the global batch (equation 4).
        mean = sum_over_ranks(self._mean) / world_size()
        moved = self.center.lerp(mean, 1 - self.config.center_momentum)
        self.center.copy_(torch.where(good > 0, moved, self.center))
