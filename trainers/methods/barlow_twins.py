"""Barlow Twins: the cross-correlation of two views' embeddings should be the identity.

Zbontar et al., "Barlow Twins: Self-Supervised Learning via Redundancy Reduction", ICML 2021.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from trainers.methods.config import BarlowTwinsConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.batch_norm import GlobalBatchNorm
from trainers.models.heads import Encoded, Network, feature_dim, mlp
from trainers.ranks import sum_with_gradient, world_size


class BarlowTwins(Method):
    """A student whose embeddings are standardised over the global batch."""

    def __init__(self, config: BarlowTwinsConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        projector = mlp([feature_dim(encoder), config.hidden_dim, config.hidden_dim, config.dim], bias=False)
        self.student = Network(encoder, projector)
        self.standardise = GlobalBatchNorm(config.dim, affine=False, track_running_stats=False)

    def inputs(self, views: Views, clock: Clock) -> tuple[list[Tensor]]:
        return (views.crops[:1],)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        with torch.autocast(outputs.embeddings.device.type, enabled=False):
            first, second = (self.standardise(outputs.embeddings[:, view].float()) for view in range(2))
            correlation = sum_with_gradient(first.T @ second) / (len(first) * world_size())
            return StepOutput(redundancy(correlation, self.config.redundancy_weight))


def redundancy(correlation: Tensor, weight: float) -> Tensor:
    """Equation 1: the sum of (1 - C_ii)² plus `weight` times that of C_ij², i != j, of a cross-correlation matrix (D, D)."""
    diagonal = correlation.diagonal()
    rest = correlation.square().sum() - diagonal.square().sum()
    return (1 - diagonal).square().sum() + weight * rest
