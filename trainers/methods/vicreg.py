"""VICReg: keep the variance of every dimension, the views together, and the dimensions uncorrelated.

Bardes et al., "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning", ICLR 2022.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import VicregConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded, Network, feature_dim, mlp
from trainers.ranks import gather


class Vicreg(Method):
    """A student whose two global crops are compared."""

    def __init__(self, config: VicregConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([feature_dim(encoder), config.hidden_dim, config.hidden_dim, config.dim]))

    def inputs(self, views: Views, clock: Clock) -> tuple[list[Tensor]]:
        return (views.crops[:1],)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        config = self.config
        with torch.autocast(outputs.embeddings.device.type, enabled=False):
            first, second = gather(outputs.embeddings.float()).unbind(1)
            invariance = F.mse_loss(first, second)
            variance = spread(first) + spread(second)
            covariance = correlation(first) + correlation(second)
        loss = config.invariance_weight * invariance + config.variance_weight * variance + config.covariance_weight * covariance
        return StepOutput(
            loss, {"invariance": invariance.detach(), "variance": variance.detach(), "covariance": covariance.detach()}
        )


def spread(embeddings: Tensor) -> Tensor:
    """Equation 1: the amount by which the standard deviation is below 1, averaged over the dimensions of (N, D)."""
    return F.relu(1 - torch.sqrt(embeddings.var(0) + 1e-4)).mean()


def correlation(embeddings: Tensor) -> Tensor:
    """Equations 3 and 4: the squares of the covariances of different dimensions of (N, D), summed, by D."""
    centred = embeddings - embeddings.mean(0)
    covariance = centred.T @ centred / (len(centred) - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / covariance.shape[0]
