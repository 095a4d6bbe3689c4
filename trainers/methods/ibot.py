"""iBOT: DINO, and masked patches whose targets the teacher, which sees them, gives.

Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", ICLR 2022. Class tokens and patches share one head.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curation.base import rng
from trainers.methods.config import IbotConfig
from trainers.methods.dino import Dino
from trainers.methods.losses import masked_cross_entropy
from trainers.methods.method import Clock, StepOutput, Views, follow
from trainers.models.heads import MaskedNetwork
from trainers.models.masks import Mask, block_mask
from trainers.models.vit import VisionTransformer
from trainers.ranks import sum_over_ranks


class Ibot(Dino):
    patch_center: Tensor

    def __init__(self, config: IbotConfig, backbone: Callable[[], nn.Module], *, shares_head: bool = True) -> None:
        self._shares_head = shares_head
        super().__init__(config, backbone)
        pair = (self.prototypes, self.teacher_prototypes) if shares_head else self._prototypes()
        self.patch_prototypes, self.teacher_patch_prototypes = pair
        self.register_buffer("patch_center", torch.zeros(self.prototypes.total))
        self._masks: dict[bytes, Mask] = {}

    def _network(self, encoder: nn.Module) -> MaskedNetwork:
        assert isinstance(encoder, VisionTransformer)
        projector = self._projector(encoder)
        return MaskedNetwork(encoder, projector, projector if self._shares_head else self._projector(encoder))

    def begin(self, num_samples: int, stream: int) -> None:
        self._stream = rng.key(stream, "masks")

    def _mask(self, views: Views) -> Mask:
        """The mask of these samples, made once a step: student, teacher and loss ask for it."""
        positions = views.position.tobytes()
        if positions not in self._masks:
            height, width = views.crops[0].shape[-2:]
            backbone = self.student.backbone
            assert isinstance(backbone, VisionTransformer)
            size = backbone.config.patch_size
            self._masks[positions] = block_mask(
                views.position,
                (height // size, width // size),
                probability=self.config.mask_probability,
                ratio=self.config.mask_ratio,
                stream=self._stream,
                device=views.sample.device,
            )
        return self._masks[positions]

    def inputs(self, views: Views, clock: Clock) -> tuple[Any, ...]:
        return views.crops, self._mask(views), True

    @torch.no_grad()
    def targets(self, views: Views, clock: Clock) -> tuple[Tensor, ...]:
        return self.teacher(views.crops[:1], self._mask(views), False)[:2]

    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        found = super().loss(outputs, targets, views, clock)
        config, weight = self.config, self._mask(views).weight
        losses, sums = [found.loss], []
        centers = self.prototypes.split(self.patch_center)
        pairs = zip(self.patch_prototypes, self.teacher_patch_prototypes, strict=True)
        for level, (own, other) in enumerate(pairs):
            with torch.no_grad():
                scores = other(self.prototypes.part(targets[1], level)).float()
                told = self._told(scores, centers[level], clock)
                sums.append(scores.sum(0))
            patch = F.normalize(self.prototypes.part(outputs[1], level).float(), dim=-1)
            of_patches = masked_cross_entropy(patch, own.directions(), told, weight, config.student_temperature)
            losses.append(config.patch_weight * of_patches / (2 * len(views.sample)))
        self._patch_sum = torch.cat(sums)
        self._patches = torch.full((), float(len(weight)), device=weight.device)
        return StepOutput(torch.stack(losses).sum(), found.scalars)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor) -> None:
        super().after_step(clock, good)
        if not self._shares_head:
            follow(self.teacher_patch_prototypes, self.patch_prototypes, (1 - self.momentum(clock)) * good)
        patches = sum_over_ranks(self._patches)
        mean = sum_over_ranks(self._patch_sum) / patches.clamp_min(1)
        self._move(self.patch_center, mean, good * (patches > 0))
        self._masks.clear()
