"""W-MSE: whitened embeddings cannot collapse, so positives may simply be drawn together.

Ermolov et al., "Whitening for Self-Supervised Representation Learning", ICML 2021.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.base import rng
from trainers.methods.config import WmseConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded, Network, feature_dim, mlp
from trainers.ranks import gather
from trainers.tensor_memory import to_device

_EPSILON = 1e-3
"""Share of the identity that is mixed into a covariance."""


class Wmse(Method):
    """A student whose embeddings are whitened in random slices of the global batch."""

    def __init__(self, config: WmseConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([feature_dim(encoder), config.hidden_dim, config.dim]))

    def begin(self, num_samples: int, rng_key: int) -> None:
        self._rng_key = rng_key

    def inputs(self, views: Views, clock: Clock) -> tuple[list[Tensor]]:
        return (views.crops[:1],)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        embeddings = gather(outputs.embeddings.float())
        size = self.config.slice_size
        draws = rng.generator(rng.key(self._rng_key, "slices", clock.step))
        slices = np.concatenate([draws.permutation(len(embeddings)).reshape(-1, size) for _ in range(self.config.permutations)])
        with torch.autocast(embeddings.device.type, enabled=False):
            terms = [whitened_error(embeddings[rows]) for rows in to_device(embeddings.device, slices)]
        return StepOutput(torch.stack(terms).mean())


def whitened_error(embeddings: Tensor) -> Tensor:
    """The mean of 2 - 2 cos between two views' whitened embeddings (N, 2, D), each view whitened by itself: a scalar."""
    first, second = (F.normalize(whiten(view), dim=-1) for view in embeddings.unbind(1))
    return (2 - 2 * (first * second).sum(1)).mean()


def whiten(embeddings: Tensor) -> Tensor:
    """Zero mean and unit covariance for (N, D): the inverse Cholesky factor of the covariance, applied (section 3)."""
    centred = embeddings - embeddings.mean(0)
    covariance = centred.T @ centred / (len(centred) - 1)
    identity = torch.eye(len(covariance), device=covariance.device)
    # The variant that does not wait to raise: numbers that are not finite make a step that the loop passes over.
    factor = torch.linalg.cholesky_ex((1 - _EPSILON) * covariance + _EPSILON * identity).L
    return torch.linalg.solve_triangular(factor, centred.T, upper=False).T
