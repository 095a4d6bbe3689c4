"""iBOT: DINO, and masked patches whose targets the teacher, which sees them, gives.

Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022. Class tokens and patches share one head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation import rng
from curation.errors import ConfigError
from trainers.distributed import sum_over_ranks, world_size
from trainers.heads import MaskedNetwork, NestedPrototypes, dino_projector, nested_projector
from trainers.losses import masked_cross_entropy, swapped_cross_entropy, use_of_prototypes
from trainers.masks import Mask, block_mask
from trainers.method import Clock, Method, StepOutput, Views, copy_of, follow, rising
from trainers.method_config import IbotConfig
from trainers.schedules import linear
from trainers.vit import VisionTransformer


class Ibot(Method):
    center: Tensor
    patch_center: Tensor

    def __init__(self, config: IbotConfig, backbone: Callable[[], nn.Module], *, shares_head: bool = True) -> None:
        super().__init__()
        self.config = config

        def network() -> MaskedNetwork:
            encoder = backbone()
            if not isinstance(encoder, VisionTransformer) or encoder.mask_token is None:
                raise ConfigError(
                    f"train.method.type {config.type} hides patches, so it needs train.encoder.type=vit and "
                    "train.encoder.mask_token=true."
                )

            def projector() -> nn.Module:
                return nested_projector(
                    encoder, config.nested, lambda dim: dino_projector(dim, config.hidden_dim, config.bottleneck_dim)
                )

            first = projector()
            return MaskedNetwork(encoder, first, first if shares_head else projector())

        def prototypes() -> NestedPrototypes:
            return NestedPrototypes(config.bottleneck_dim, config.prototypes, config.nested)

        self.student = network()
        self.teacher = copy_of(self.student, network)
        self.prototypes, self.teacher_prototypes = prototypes(), prototypes()
        self.patch_prototypes = self.prototypes if shares_head else prototypes()
        self.teacher_patch_prototypes = self.teacher_prototypes if shares_head else prototypes()
        for own, other in self._pairs():
            other.load_state_dict(own.state_dict())
            other.requires_grad_(False)
        self.register_buffer("center", torch.zeros(self.prototypes.total))
        self.register_buffer("patch_center", torch.zeros(self.prototypes.total))

    def _pairs(self) -> list[tuple[NestedPrototypes, NestedPrototypes]]:
        pairs = [(self.prototypes, self.teacher_prototypes)]
        if self.patch_prototypes is not self.prototypes:
            pairs.append((self.patch_prototypes, self.teacher_patch_prototypes))
        return pairs

    def begin(self, num_samples: int, stream: int) -> None:
        self._stream = rng.key(stream, "masks")

    def _mask(self, views: Views) -> Mask:
        height, width = views.crops[0].shape[-2:]
        backbone = self.student.backbone
        assert isinstance(backbone, VisionTransformer)
        size = backbone.config.patch_size
        return block_mask(
            views.position,
            (height // size, width // size),
            probability=self.config.mask_probability,
            ratio=self.config.mask_ratio,
            stream=self._stream,
            device=views.sample.device,
        )

    def inputs(self, views: Views, clock: Clock) -> tuple[Any, ...]:
        return views.crops, self._mask(views), True

    @torch.no_grad()
    def targets(self, views: Views, clock: Clock) -> tuple[Tensor, ...]:
        assert self.teacher is not None
        return self.teacher(views.crops[:1], self._mask(views), False)[:2]

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        config, weight = self.config, self._mask(views).weight
        losses, means, patch_means, use = [], [], [], dict[str, Tensor]()
        centers, patch_centers = self.prototypes.split(self.center), self.prototypes.split(self.patch_center)
        for level in range(config.nested):
            part = [self.prototypes.part(tensor, level) for tensor in (*outputs[:2], *targets)]
            own, patch = (F.normalize(tensor.float(), dim=-1) for tensor in part[:2])
            scores = self.teacher_prototypes[level](part[2]).float()
            patch_scores = self.teacher_patch_prototypes[level](part[3]).float()
            told = self._told(scores, centers[level], clock)
            patch_told = self._told(patch_scores, patch_centers[level], clock)
            directions = self.prototypes[level].directions()  # type: ignore[operator]
            patch_directions = self.patch_prototypes[level].directions()  # type: ignore[operator]
            of_patches = masked_cross_entropy(patch, patch_directions, patch_told, weight, config.student_temperature)
            losses.append(swapped_cross_entropy(own, directions, told, config.student_temperature))
            losses.append(config.patch_weight * of_patches / (2 * len(own)))
            use = use or use_of_prototypes(told)
            means.append(scores.mean((0, 1)))
            patch_means.append(patch_scores.sum(0))
        self._mean, self._patch_sum = torch.cat(means), torch.cat(patch_means)
        self._patches = torch.tensor(float(len(weight)), device=weight.device)
        return StepOutput(torch.stack(losses).sum(), use)

    def _temperature(self, clock: Clock) -> float:
        config = self.config
        return linear(clock.epoch, config.teacher_warmup_epochs, config.teacher_temperature_start, config.teacher_temperature)

    def _told(self, scores: Tensor, center: Tensor, clock: Clock) -> Tensor:
        """The teacher's scores (..., K) to targets."""
        return F.softmax((scores - center) / self._temperature(clock), dim=-1)

    def prototypes_frozen(self, clock: Clock) -> bool:
        return clock.epoch < self.config.freeze_prototypes_epochs

    def momentum(self, clock: Clock) -> float:
        return rising(clock, self.config.momentum)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor) -> None:
        super().after_step(clock, good)
        for own, other in self._pairs():
            follow(other, own, (1 - self.momentum(clock)) * good)
        share = 1 - self.config.center_momentum
        mean = sum_over_ranks(self._mean) / world_size()
        self.center.copy_(torch.where(good > 0, self.center.lerp(mean, share), self.center))
        patches = sum_over_ranks(self._patches)
        patch_mean = sum_over_ranks(self._patch_sum) / patches.clamp_min(1)
        seen = (good > 0) & (patches > 0)
        self.patch_center.copy_(torch.where(seen, self.patch_center.lerp(patch_mean, share), self.patch_center))
