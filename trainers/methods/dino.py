"""DINO: self-distillation with no labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import DinoConfig
from trainers.distributed import sum_over_ranks, world_size
from trainers.heads import MultiCrop, dino_head
from trainers.losses import swapped_cross_entropy
from trainers.methods import Clock, StepOutput
from trainers.schedules import cosine, linear


class Dino(nn.Module):
    center: Tensor

    def __init__(self, config: DinoConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config

        def network() -> MultiCrop:
            encoder = backbone()
            dim = int(encoder.num_features)  # type: ignore[arg-type]
            return MultiCrop(encoder, dino_head(dim, config.hidden_dim, config.bottleneck_dim, config.prototypes))

        self.student, self.teacher = network(), network()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.register_buffer("center", torch.zeros(config.prototypes))

    @property
    def encoder(self) -> nn.Module:
        return self.teacher.backbone

    def step(self, student: Callable[[list[Tensor]], Tensor], crops: list[Tensor], clock: Clock) -> StepOutput:
        config = self.config
        temperature = linear(
            clock.epoch, config.teacher_warmup_epochs, config.teacher_temperature_start, config.teacher_temperature
        )
        with torch.no_grad():
            scores = self.teacher(crops[:1]).float()
            targets = F.softmax((scores - self.center) / temperature, dim=-1)
            self._move_center(scores)
        predictions = F.log_softmax(student(crops).float() / config.student_temperature, dim=-1)
        entropy = -torch.special.xlogy(targets, targets).sum(-1).mean()
        return StepOutput(swapped_cross_entropy(predictions, targets), {"teacher_entropy": entropy})

    def _move_center(self, scores: Tensor) -> None:
        """Exponential moving average of the teacher's mean score over the global batch (equation 4)."""
        mean = sum_over_ranks(scores.mean((0, 1))) / world_size()
        self.center.lerp_(mean, 1 - self.config.center_momentum)

    def frozen(self, clock: Clock) -> Iterable[nn.Parameter]:
        return self.student.head.prototypes.parameters() if clock.epoch < self.config.freeze_prototypes_epochs else ()

    @torch.no_grad()
    def after_step(self, clock: Clock) -> None:
        momentum = cosine(clock.step, clock.total_steps, self.config.momentum, 1.0)
        torch._foreach_lerp_(list(self.teacher.parameters()), list(self.student.parameters()), 1 - momentum)
