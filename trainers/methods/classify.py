"""Classification of pseudo-labels.

Caron et al., "Deep Clustering for Unsupervised Learning of Visual Features", ECCV 2018; Yan et al., "ClusterFit", CVPR 2020.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import nn

from trainers.methods.config import ClassifyConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded, Network, feature_dim


class Classify(Method):
    """A student with a linear classifier."""

    def __init__(self, config: ClassifyConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, nn.Linear(feature_dim(encoder), config.classes))

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        scores = outputs.embeddings.float()
        label = views.label[:, None].expand(scores.shape[:2]).flatten()
        scores = scores.flatten(0, 1)
        loss = F.cross_entropy(scores, label, label_smoothing=self.config.label_smoothing)
        return StepOutput(loss, {"accuracy": (scores.argmax(1) == label).float().mean()})
