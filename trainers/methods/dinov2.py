"""DINOv2: DINO and iBOT with heads of their own, targets by Sinkhorn-Knopp, and features spread by KoLeo.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision", TMLR 2024, section 4.
"""

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import nn

from trainers.methods.config import Dinov2Config
from trainers.methods.ibot import Ibot
from trainers.methods.losses import koleo
from trainers.methods.method import Clock, StepOutput, Views
from trainers.models.heads import Encoded
from trainers.ranks import gather


class Dinov2(Ibot):
    """iBOT with a separate head for patches, and KoLeo on the features of the global crops."""

    config: Dinov2Config

    def __init__(self, config: Dinov2Config, backbone: Callable[[], nn.Module]) -> None:
        super().__init__(config, backbone, shares_head=False)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        assert outputs.features is not None
        of_heads = super().loss(outputs, targets, views, clock)
        features = F.normalize(outputs.features.float(), dim=-1)
        spread = sum(koleo(features[:, view], gather(features[:, view])) for view in range(2))
        return replace(of_heads, loss=of_heads.loss + self.config.koleo_weight * spread)
