"""DINO: self-distillation with no labels.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import DinoConfig
from trainers.methods.losses import swapped_cross_entropy, use_of_prototypes
from trainers.methods.method import Clock, EmaTeacherMethod, StepOutput, Views, copy_of, ema_update
from trainers.methods.sinkhorn import sinkhorn
from trainers.models.heads import Encoded, NestedPrototypes, Network, dino_projector, nested_projector
from trainers.ranks import sum_over_ranks, world_size
from trainers.schedules import linear


class Dino(EmaTeacherMethod):
    """Student and teacher with prototypes; `center` (K,) is the moving mean of the teacher's scores."""

    center: Tensor

    def __init__(self, config: DinoConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        self.student = self._network(backbone())
        self.teacher = copy_of(self.student, lambda: self._network(backbone()))
        self.prototypes, self.teacher_prototypes = self._prototypes()
        self.register_buffer("center", torch.zeros(self.prototypes.total))

    def _network(self, encoder: nn.Module) -> Network:
        return Network(encoder, self._projector(encoder))

    def _projector(self, encoder: nn.Module) -> nn.Module:
        config = self.config
        return nested_projector(
            encoder, config.nested, lambda dim: dino_projector(dim, config.hidden_dim, config.bottleneck_dim)
        )

    def _prototypes(self) -> tuple[NestedPrototypes, NestedPrototypes]:
        """The student's prototypes, and the teacher's, which start as copies."""
        config = self.config
        student, teacher = (NestedPrototypes(config.bottleneck_dim, config.prototypes, config.nested) for _ in range(2))
        teacher.load_state_dict(student.state_dict())
        return student, teacher.requires_grad_(False)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        losses, mean_scores, use = [], [], dict[str, Tensor]()
        centers = self.prototypes.split(self.center)
        for level, (prototypes, teacher) in enumerate(zip(self.prototypes, self.teacher_prototypes, strict=True)):
            with torch.no_grad():
                scores = teacher(self.prototypes.part(targets.embeddings, level)).float()
                assignments = self._teacher_targets(scores, centers[level], clock)
                mean_scores.append(scores.mean((0, 1)))
            embeddings = F.normalize(self.prototypes.part(outputs.embeddings, level).float(), dim=-1)
            temperature = self.config.student_temperature
            losses.append(swapped_cross_entropy(embeddings, prototypes.directions(), assignments, temperature))
            use = use or use_of_prototypes(assignments)
        return StepOutput(torch.stack(losses).sum(), use, {"mean_score": torch.cat(mean_scores)})

    def _teacher_targets(self, scores: Tensor, center: Tensor, clock: Clock) -> Tensor:
        """The target distributions (..., K) of the teacher's scores (..., K)."""
        if self.config.targets == "sinkhorn":
            # Both global crops are one batch, as are the patches of all.
            rows = scores.flatten(0, -2)[:, None]
            return sinkhorn(rows, epsilon=self._temperature(clock), iterations=3).view(scores.shape)
        return F.softmax((scores - center) / self._temperature(clock), dim=-1)

    def _temperature(self, clock: Clock) -> float:
        """The teacher's temperature at this step."""
        config = self.config
        return linear(clock.epoch, config.teacher_warmup_epochs, config.teacher_temperature_start, config.teacher_temperature)

    def prototypes_frozen(self, clock: Clock) -> bool:
        return clock.epoch < self.config.freeze_prototypes_epochs

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        super().after_step(clock, good, remember)
        ema_update(self.teacher_prototypes, self.prototypes, (1 - self.momentum(clock)) * good)
        self._update_center(self.center, sum_over_ranks(remember["mean_score"]) / world_size(), good)

    def _update_center(self, center: Tensor, mean: Tensor, good: Tensor) -> None:
        """Update the moving average of the teacher's mean score over the global batch (equation 4), if `good`."""
        center.copy_(torch.where(good > 0, center.lerp(mean, 1 - self.config.center_momentum), center))
