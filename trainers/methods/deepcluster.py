"""DeepCluster-v2: before each epoch, k-means of the last epoch's embeddings gives every sample its class.

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
from trainers.methods.config import DeepClusterConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded, Network, feature_dim, mlp
from trainers.ranks import gather


class DeepCluster(Method):
    """A student; a `memory` (N, 2, D) of embeddings; `prototypes` (H, K, D) and the `assignment` (H, N) to them."""

    memory: Tensor
    prototypes: Tensor
    assignment: Tensor

    def __init__(self, config: DeepClusterConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, mlp([feature_dim(encoder), config.hidden_dim, config.bottleneck_dim]))
        self.register_buffer("memory", torch.zeros(0, 2, config.bottleneck_dim, dtype=torch.float16))
        self.register_buffer("prototypes", torch.zeros(config.heads, config.prototypes, config.bottleneck_dim))
        self.register_buffer("assignment", torch.zeros(config.heads, 0, dtype=torch.int64))

    def begin(self, num_samples: int, rng_key: int) -> None:
        self._rng_key = rng_key
        self.memory = self.memory.new_zeros(num_samples, *self.memory.shape[1:])
        self.assignment = self.assignment.new_zeros(self.config.heads, num_samples)

    def before_first_step(self, epoch: Callable[[], Iterator[Views]]) -> None:
        with torch.no_grad():
            for views in epoch():
                embeddings = self.student(views.crops[:1]).embeddings
                self._remember(views.sample, embeddings, torch.ones((), device=embeddings.device))
        self.before_epoch(0)

    def before_epoch(self, epoch: int) -> None:
        workers = TorchCollectives() if dist.is_initialized() else Alone()
        for head in range(self.config.heads):
            # Heads alternate between the two crops, as in the authors' code.
            source = ArraySource(F.normalize(self.memory[:, head % 2].float(), dim=1).cpu().numpy())
            clustering = KMeans(
                source.share(workers.rank, workers.size),
                self.config.prototypes,
                rng_key=rng.key(self._rng_key, "clusters", epoch, head),
                options=KMeansOptions(spherical=True, max_iterations=self.config.iterations),
                collectives=workers,
            ).run()
            self.prototypes[head].zero_()
            self.prototypes[head, : len(clustering.centroids)] = torch.from_numpy(clustering.centroids).to(
                self.prototypes.device
            )
            labels = torch.cat([torch.from_numpy(part) for part in workers.gather(clustering.local_assignment)])
            self.assignment[head] = labels.to(self.assignment.device)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        embeddings, labels = F.normalize(outputs.embeddings.float(), dim=-1), self.assignment[:, views.sample]
        loss = classification(embeddings, self.prototypes, labels, self.config.temperature)
        return StepOutput(loss, remember={"sample": views.sample, "embeddings": outputs.embeddings[:, :2].detach()})

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        self._remember(remember["sample"], remember["embeddings"], good)

    def _remember(self, sample: Tensor, embeddings: Tensor, good: Tensor) -> None:
        """Write the embeddings (B, 2, D) of this rank's samples (B,) to the memory of all ranks, if `good`."""
        rows, values = gather(sample), gather(embeddings.to(self.memory.dtype))
        self.memory[rows] = torch.where(good > 0, values, self.memory[rows])


def classification(embeddings: Tensor, prototypes: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of every view (B, V, D) with its sample's cluster `label` (H, B) among `prototypes` (H, K, D)."""
    with torch.autocast(embeddings.device.type, enabled=False):
        scores = torch.einsum("bvd,hkd->hbvk", embeddings, prototypes) / temperature
        labels = label[:, :, None].expand(scores.shape[:3])
        return F.cross_entropy(scores.flatten(0, 2), labels.flatten())
