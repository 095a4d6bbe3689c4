"""Supervised contrastive learning, on pseudo-labels.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020. Samples without a label are alike to themselves only.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from trainers.distributed import gather, gathered_rows
from trainers.heads import Network, mlp, width
from trainers.method import Clock, Method, StepOutput, Views
from trainers.method_config import SupconConfig
from trainers.methods.simclr import contrast


class Supcon(Method):
    needs_labels = True

    def __init__(self, config: SupconConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([width(encoder), config.hidden_dim, config.dim]))

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        seen = F.normalize(outputs[0].float(), dim=-1)
        own = gathered_rows(len(seen), seen.device)
        label = gather(views.label)
        alike = (views.label[:, None] == label) & (label >= 0) | (own[:, None] == gather(own))
        return StepOutput(contrast(seen, gather(seen), own, alike, self.config.temperature))
