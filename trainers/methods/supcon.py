"""Supervised contrastive learning, on pseudo-labels.

Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020. A sample without a label is a positive of itself only.
"""

from torch import Tensor

from trainers.methods.method import Views
from trainers.methods.simclr import Simclr
from trainers.ranks import gather


class Supcon(Simclr):
    """SimCLR where samples of one label are positives of one another, too."""

    def _positives(self, views: Views, rows: Tensor) -> Tensor:
        label = gather(views.label)
        return (views.label[:, None] == label) & (label >= 0) | super()._positives(views, rows)
