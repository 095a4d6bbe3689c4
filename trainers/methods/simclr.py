"""SimCLR: every view must find the other views of its sample among all views of the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import SimclrConfig
from trainers.methods.losses import multi_positive_cross_entropy
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded, Network, feature_dim, mlp
from trainers.ranks import gather, gathered_rows


class Simclr(Method):
    """A student whose views of a sample are positives of one another."""

    def __init__(self, config: SimclrConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([feature_dim(encoder), config.hidden_dim, config.dim]))

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        embeddings = F.normalize(outputs.embeddings.float(), dim=-1)
        rows = gathered_rows(len(embeddings), embeddings.device)
        positives = self._positives(views, rows)
        return StepOutput(contrast(embeddings, gather(embeddings), rows, positives, self.config.temperature))

    def _positives(self, views: Views, rows: Tensor) -> Tensor:
        """(B, G) bool: which samples of the global batch are positives of this rank's, which are its rows `rows` (B,)."""
        return rows[:, None] == gather(rows)


def contrast(embeddings: Tensor, all_embeddings: Tensor, rows: Tensor, positives: Tensor, temperature: float) -> Tensor:
    """NT-Xent, or with labels the supervised contrastive loss: a scalar.

    `embeddings` (B, V, D) are this rank's, of length 1: the rows `rows` (B,) of all ranks' `all_embeddings` (G, V, D);
    `positives` (B, G) bool says which samples are positives of one another.
    """
    num_views = embeddings.shape[1]
    same_sample = (rows[:, None] == torch.arange(len(all_embeddings), device=rows.device)).repeat_interleave(num_views, 0)
    view = torch.arange(num_views, device=rows.device)
    same_view = view.repeat(len(embeddings))[:, None] == view.repeat(len(all_embeddings))
    other = ~(same_sample.repeat_interleave(num_views, 1) & same_view)
    positive = positives.repeat_interleave(num_views, 0).repeat_interleave(num_views, 1) & other
    queries, keys = embeddings.flatten(0, 1), all_embeddings.flatten(0, 1)
    return multi_positive_cross_entropy(queries, keys, positive, other, temperature)
