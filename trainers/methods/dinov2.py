"""DINOv2: DINO and iBOT with heads of their own, targets by Sinkhorn-Knopp, and features spread by KoLeo.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, section 4.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import Dinov2Config
from trainers.methods.ibot import Ibot
from trainers.methods.losses import koleo
from trainers.methods.method import Clock, StepOutput, Views
from trainers.ranks import gather


class Dinov2(Ibot):
    config: Dinov2Config

    def __init__(self, config: Dinov2Config, backbone: Callable[[], nn.Module]) -> None:
        super().__init__(config, backbone, shares_head=False)

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        found = super().loss(outputs, targets, views, clock)
        features = F.normalize(outputs[2].float(), dim=-1)
        spread = sum(koleo(features[:, view], gather(features[:, view])) for view in range(2))
        return StepOutput(found.loss + self.config.koleo_weight * spread, found.scalars)
