"""BYOL: the student predicts the embedding that its moving average, the teacher, gives another view.

Grill et al., "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", NeurIPS 2020.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import ByolConfig
from trainers.methods.method import Clock, EmaTeacherMethod, StepOutput, Views, copy_of
from trainers.models.heads import Encoded, Network, feature_dim, mlp


class Byol(EmaTeacherMethod):
    """A student with a predictor, and a teacher."""

    def __init__(self, config: ByolConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config

        def network() -> Network:
            encoder = backbone()
            projector = mlp([feature_dim(encoder), config.hidden_dim, config.dim])
            return Network(encoder, projector, mlp([config.dim, config.hidden_dim, config.dim]))

        self.student = network()
        self.teacher = copy_of(self.student, network)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        return StepOutput(regression(outputs.embeddings.float(), targets.embeddings.float()))


def regression(predictions: Tensor, targets: Tensor) -> Tensor:
    """The symmetric loss of equations 2 and 3: per pair of different views 2 - 2 cos, and the two directions added.

    `predictions` (B, V, D) of all views, `targets` (B, 2, D) of the first two; with more views the mean over pairs, times two.
    """
    cosine = torch.einsum("bvd,bgd->vg", F.normalize(predictions, dim=-1), F.normalize(targets, dim=-1)) / len(predictions)
    num_pairs = targets.shape[1] * (predictions.shape[1] - 1)
    return 2 * (2 - 2 * (cosine.sum() - cosine.diagonal().sum()) / num_pairs)
