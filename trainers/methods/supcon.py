"""Supervised contrastive learning, on pseudo-labels.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020. Samples without a label are alike to themselves only.
"""

from torch import Tensor

from trainers.methods.method import Views
from trainers.methods.simclr import Simclr
from trainers.ranks import gather


class Supcon(Simclr):
    def _alike(self, views: Views, own: Tensor) -> Tensor:
        label = gather(views.label)
        return (views.label[:, None] == label) & (label >= 0) | super()._alike(views, own)
