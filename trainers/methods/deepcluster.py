"""DeepCluster-v2: once an epoch, k-means of what the epoch before saw gives every sample its class.

Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", NeurIPS 2020, appendix D.
"""

from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from curation.base import rng
from curation.base.collectives import Alone, TorchCollectives
from curation.embeddings.source import ArraySource
from curation.kmeans.lloyd import KMeans, KMeansOptions
from trainers.engine.parallel import gather
from trainers.methods.config import DeepClusterConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Network, mlp, width


class DeepCluster(Method):
    memory: Tensor
    prototypes: Tensor
    assignment: Tensor

    def __init__(self, config: DeepClusterConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([width(encoder), config.hidden_dim, config.bottleneck_dim]))
        self.register_buffer("memory", torch.zeros(0, 2, config.bottleneck_dim, dtype=torch.float16))
        self.register_buffer("prototypes", torch.zeros(config.heads, config.prototypes, config.bottleneck_dim))
        self.register_buffer("assignment", torch.zeros(config.heads, 0, dtype=torch.int64))

    def begin(self, num_samples: int, stream: int) -> None:
        self._stream = stream
        self.memory = self.memory.new_zeros(num_samples, *self.memory.shape[1:])
        self.assignment = self.assignment.new_zeros(self.config.heads, num_samples)

    def before_first_step(self, epoch: Callable[[], Iterator[Views]]) -> None:
        with torch.no_grad():
            for views in epoch():
                (self._seen,), self._rows = self.student(views.crops[:1]), views.sample
                self._remember(torch.ones((), device=self._seen.device))
        self.before_epoch(0)

    def before_epoch(self, epoch: int) -> None:
        workers = TorchCollectives() if dist.is_initialized() else Alone()
        for head in range(self.config.heads):
            # Heads take turns between the two crops, as the authors' do.
            source = ArraySource(F.normalize(self.memory[:, head % 2].float(), dim=1).cpu().numpy())
            found = KMeans(
                source.share(workers.rank, workers.size),
                self.config.prototypes,
                rng_key=rng.key(self._stream, "clusters", epoch, head),
                options=KMeansOptions(spherical=True, max_iterations=self.config.iterations),
                collectives=workers,
            ).run()
            self.prototypes[head].zero_()
            self.prototypes[head, : len(found.centroids)] = torch.from_numpy(found.centroids).to(self.prototypes.device)
            labels = torch.cat([torch.from_numpy(part) for part in workers.gather(found.local_assignment)])
            self.assignment[head] = labels.to(self.assignment.device)

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        self._seen, self._rows = outputs[0][:, :2].detach(), views.sample
        seen = F.normalize(outputs[0].float(), dim=-1)
        return StepOutput(classification(seen, self.prototypes, self.assignment[:, views.sample], self.config.temperature))

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor) -> None:
        self._remember(good)

    def _remember(self, good: Tensor) -> None:
        rows, seen = gather(self._rows), gather(self._seen.to(self.memory.dtype))
        self.memory[rows] = torch.where(good > 0, seen, self.memory[rows])


def classification(seen: Tensor, prototypes: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every view (B, V, D) with its sample's cluster `label` (H, B) among `prototypes` (H, K, D), the mean."""
    with torch.autocast(seen.device.type, enabled=False):
        scores = torch.einsum("bvd,hkd->hbvk", seen, prototypes) / temperature
        every = label[:, :, None].expand(scores.shape[:3])
        return F.cross_entropy(scores.flatten(0, 2), every.flatten())
