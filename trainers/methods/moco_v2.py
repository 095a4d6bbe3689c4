"""MoCo v2: a momentum encoder's keys of earlier samples are the negatives.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020; Chen et al., "Improved Baselines
with Momentum Contrastive Learning", 2020. Batch norm over the global batch takes the place of shuffling it.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import MocoV2Config
from trainers.methods.method import Clock, EmaTeacherMethod, StepOutput, Views, copy_of
from trainers.methods.queue import Queue
from trainers.models.heads import Encoded, Network, feature_dim
from trainers.ranks import gather


class MocoV2(EmaTeacherMethod):
    """Student, teacher, and a queue (K, D) of the teacher's keys of earlier samples."""

    def __init__(self, config: MocoV2Config, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config

        def network() -> Network:
            encoder = backbone()
            dim = feature_dim(encoder)
            return Network(
                encoder, nn.Sequential(nn.Linear(dim, config.hidden_dim), nn.ReLU(), nn.Linear(config.hidden_dim, config.dim))
            )

        self.student = network()
        self.teacher = copy_of(self.student, network)
        self.queue = Queue(config.queue, config.dim)
        nn.init.normal_(self.queue.rows)

    def inputs(self, views: Views, clock: Clock) -> tuple[list[Tensor]]:
        return ([views.crops[0][:1]],)

    @torch.no_grad()
    def targets(self, views: Views, clock: Clock) -> Encoded:
        return self.teacher([views.crops[0][1:]])  # type: ignore[no-any-return]

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        query, key = (F.normalize(one.embeddings[:, 0].float(), dim=-1) for one in (outputs, targets))
        loss = queue_contrast(query, key, F.normalize(self.queue.rows, dim=-1), self.config.temperature)
        return StepOutput(loss, remember={"keys": key})

    def momentum(self, clock: Clock) -> float:
        return self.config.momentum

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        super().after_step(clock, good, remember)
        self.queue.push(gather(remember["keys"]), clock.step, good)


def queue_contrast(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """-log softmax of each query's similarity to its key (B, D) among that and the queue's (K, D): equation 1, a scalar."""
    with torch.autocast(query.device.type, enabled=False):
        scores = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / temperature
        return (torch.logsumexp(scores, dim=1) - scores[:, 0]).mean()
