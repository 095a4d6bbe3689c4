"""SwAV: swapping assignments between views.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020.
"""

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import SwavConfig
from trainers.heads import MultiCrop, swav_head
from trainers.losses import swapped_cross_entropy
from trainers.methods import Clock, StepOutput
from trainers.sinkhorn import sinkhorn


class Swav(nn.Module):
    def __init__(self, config: SwavConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        dim = int(encoder.num_features)  # type: ignore[arg-type]
        self.student = MultiCrop(encoder, swav_head(dim, config.hidden_dim, config.bottleneck_dim, config.prototypes))

    @property
    def encoder(self) -> nn.Module:
        return self.student.backbone

    def step(self, student: Callable[[list[Tensor]], Tensor], crops: list[Tensor], _: Clock) -> StepOutput:
        config = self.config
        scores = student(crops).float()
        codes = torch.stack(
            [sinkhorn(view, epsilon=config.epsilon, iterations=config.sinkhorn_iterations) for view in scores[:2].detach()]
        )
        predictions = F.log_softmax(scores / config.temperature, dim=-1)
        entropy = -torch.special.xlogy(codes, codes).sum(-1).mean()
        return StepOutput(swapped_cross_entropy(predictions, codes), {"code_entropy": entropy})

    def frozen(self, clock: Clock) -> Iterable[nn.Parameter]:
        return self.student.head.prototypes.parameters() if clock.epoch < self.config.freeze_prototypes_epochs else ()

    def after_step(self, clock: Clock) -> None:
        pass
