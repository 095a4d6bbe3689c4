"""MoCo v3: momentum contrast within the batch, with a predictor.

Chen et al., "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import MocoV3Config
from trainers.methods.method import Clock, EmaTeacherMethod, StepOutput, Views, copy_of
from trainers.models.heads import Encoded, Network, feature_dim, mlp
from trainers.ranks import gather, gathered_rows


class MocoV3(EmaTeacherMethod):
    """A student with a predictor, and a teacher."""

    def __init__(self, config: MocoV3Config, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config

        def network() -> Network:
            encoder = backbone()
            projector = mlp(
                [feature_dim(encoder), config.hidden_dim, config.hidden_dim, config.dim], last_norm=True, bias=False
            )
            return Network(encoder, projector, mlp([config.dim, config.hidden_dim, config.dim], last_norm=True, bias=False))

        self.student = network()
        self.teacher = copy_of(self.student, network)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        query, key = (F.normalize(one.embeddings.float(), dim=-1) for one in (outputs, targets))
        rows = gathered_rows(len(query), query.device)
        return StepOutput(symmetric_contrast(query, gather(key), rows, self.config.temperature))


def symmetric_contrast(query: Tensor, keys: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """Algorithm 1, ctr(q1, k2) + ctr(q2, k1), for any number of views: the mean over pairs of different views, times two.

    `query` (B, V, D) of this rank's samples, which are the rows `rows` (B,) of the `keys` (G, 2, D) of all; lengths are 1.
    """
    with torch.autocast(query.device.type, enabled=False):
        terms = [
            F.cross_entropy(query[:, view] @ keys[:, other].T / temperature, rows)
            for other in range(keys.shape[1])
            for view in range(query.shape[1])
            if view != other
        ]
        return 2 * 2 * temperature * torch.stack(terms).mean()
