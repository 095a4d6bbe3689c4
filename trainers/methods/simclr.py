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
from trainers.models.heads import Network, feature_dim, mlp
from trainers.ranks import gather, gathered_rows


class Simclr(Method):
    def __init__(self, config: SimclrConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([feature_dim(encoder), config.hidden_dim, config.dim]))

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        seen = F.normalize(outputs[0].float(), dim=-1)
        own = gathered_rows(len(seen), seen.device)
        return StepOutput(contrast(seen, gather(seen), own, self._alike(views, own), self.config.temperature))

    def _alike(self, views: Views, own: Tensor) -> Tensor:
        """(B, G) bool: which samples of the global batch are positives of this rank's, which are at rows `own` (B,) of it."""
        return own[:, None] == gather(own)


def contrast(seen: Tensor, every: Tensor, own: Tensor, alike: Tensor, temperature: float) -> Tensor:
    """NT-Xent, or with labels the supervised contrastive loss: a scalar.

    `seen` (B, V, D) are this rank's embeddings of length 1, at rows `own` (B,) of all ranks' `every` (G, V, D); `alike` (B, G)
    tells which samples are positives of one another.
    """
    num_views = seen.shape[1]
    itself = (own[:, None] == torch.arange(len(every), device=own.device)).repeat_interleave(num_views, 0)
    view = torch.arange(num_views, device=own.device)
    same_view = view.repeat(len(seen))[:, None] == view.repeat(len(every))
    other = ~(itself.repeat_interleave(num_views, 1) & same_view)
    positive = alike.repeat_interleave(num_views, 0).repeat_interleave(num_views, 1) & other
    return multi_positive_cross_entropy(seen.flatten(0, 1), every.flatten(0, 1), positive, other, temperature)
