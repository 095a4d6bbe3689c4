"""SwAV: swapping assignments between views.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.methods.config import SwavConfig
from trainers.methods.losses import swapped_cross_entropy, use_of_prototypes
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.methods.queue import Queue
from trainers.methods.sinkhorn import sinkhorn
from trainers.models.heads import Encoded, NestedPrototypes, Network, mlp, nested_projector
from trainers.ranks import gather, rank, world_size


class Swav(Method):
    """A student with prototypes, and a queue (Q, 2, D) of earlier embeddings if the configuration asks for one."""

    def __init__(self, config: SwavConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        projector = nested_projector(encoder, config.nested, lambda dim: mlp([dim, config.hidden_dim, config.bottleneck_dim]))
        self.student = Network(encoder, projector)
        self.prototypes = NestedPrototypes(config.bottleneck_dim, config.prototypes, config.nested)
        self.queue = Queue(config.queue, 2, config.bottleneck_dim * config.nested) if config.queue else None

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        config = self.config
        global_embeddings = outputs.embeddings[:, :2].detach()
        rows = global_embeddings
        if self.queue is not None and clock.epoch >= config.queue_start_epoch:
            # Each rank takes its share of the queue, so that together they take it once.
            rows = torch.cat([rows, self.queue.rows[rank() :: world_size()].to(rows.dtype)])
        losses, use = [], dict[str, Tensor]()
        for level, prototypes in enumerate(self.prototypes):
            with torch.no_grad():
                scores = prototypes(self.prototypes.part(rows, level)).float()
                codes = sinkhorn(scores, epsilon=config.epsilon, iterations=config.sinkhorn_iterations)[: len(views.sample)]
            embeddings = F.normalize(self.prototypes.part(outputs.embeddings, level).float(), dim=-1)
            losses.append(swapped_cross_entropy(embeddings, prototypes.directions(), codes, config.temperature))
            use = use or use_of_prototypes(codes)
        return StepOutput(torch.stack(losses).sum(), use, {"embeddings": global_embeddings})

    def prototypes_frozen(self, clock: Clock) -> bool:
        return clock.epoch < self.config.freeze_prototypes_epochs

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        if self.queue is not None:
            self.queue.push(gather(remember["embeddings"]), clock.step, good)
