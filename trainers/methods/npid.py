"""NPID: every sample is a class of its own, whose vector is kept in a memory bank.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.base import rng
from trainers.methods.config import NpidConfig
from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded, Network, feature_dim
from trainers.ranks import gather, gathered_rows, sum_over_ranks, world_size


class Npid(Method):
    """A student, and a `bank` (N, D) with a vector of each sample; `normaliser` is the constant Z."""

    bank: Tensor
    normaliser: Tensor

    def __init__(self, config: NpidConfig, backbone: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.config = config
        encoder = backbone()
        self.student = Network(encoder, nn.Linear(feature_dim(encoder), config.dim))
        self.register_buffer("bank", torch.zeros(0, config.dim))
        self.register_buffer("normaliser", torch.zeros(()))

    def begin(self, num_samples: int, rng_key: int) -> None:
        self._rng_key = rng_key
        draws = torch.Generator().manual_seed(rng.key(rng_key, "bank") >> 1)
        self.bank = F.normalize(torch.randn(num_samples, self.config.dim, generator=draws), dim=1).to(self.normaliser.device)

    def inputs(self, views: Views, clock: Clock) -> tuple[list[Tensor]]:
        return ([views.crops[0][:1]],)

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        config, num_samples = self.config, len(self.bank)
        embeddings = F.normalize(outputs.embeddings[:, 0].float(), dim=1)
        device = embeddings.device
        # Drawn for the global batch, so that the number of ranks does not matter.
        draws = torch.Generator(device).manual_seed(rng.key(self._rng_key, "noise", clock.step) >> 1)
        shape = (len(embeddings) * world_size(), config.negatives)
        noise = torch.randint(num_samples, shape, generator=draws, device=device)[gathered_rows(len(embeddings), device)]
        with torch.autocast(device.type, enabled=False):
            entries = self.bank[views.sample]
            positive = (embeddings * entries).sum(1) / config.temperature
            negative = torch.einsum("bd,bmd->bm", embeddings, self.bank[noise]) / config.temperature
            estimate = sum_over_ranks(negative.detach().exp().mean()) / world_size() * num_samples
            constant = torch.where(self.normaliser > 0, self.normaliser, estimate)
            loss = noise_contrast(positive, negative, constant, num_samples)
            proximal = (embeddings - entries).square().sum(1).mean()
        remember = {"normaliser": constant, "sample": views.sample, "embeddings": embeddings.detach()}
        return StepOutput(loss + config.proximal_weight * proximal, remember=remember)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        rows, embeddings = gather(remember["sample"]), gather(remember["embeddings"])
        before = self.bank[rows]
        after = F.normalize(before.lerp(embeddings, 1 - self.config.bank_momentum), dim=1)
        self.bank[rows] = torch.where(good > 0, after, before)
        self.normaliser.copy_(torch.where(good > 0, remember["normaliser"], self.normaliser))


def noise_contrast(positive: Tensor, negative: Tensor, normaliser: Tensor, num_samples: int) -> Tensor:
    """Equations 4 to 8: -log h(i, v) - m E log(1 - h(i, v')), h the posterior of data against m uniform noise samples.

    `positive` (B,) and `negative` (B, m) are similarities by the temperature, `normaliser` the constant Z. A scalar.
    """
    num_noise = negative.shape[1]
    offset = torch.log(normaliser) + torch.log(torch.tensor(num_noise / num_samples))
    return -F.logsigmoid(positive - offset).mean() - F.logsigmoid(offset - negative).sum(1).mean()
