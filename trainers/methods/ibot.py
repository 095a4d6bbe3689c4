"""iBOT: DINO, and the prediction of masked patches, whose targets come from a teacher that sees them.

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
from trainers.methods.method import Clock, StepOutput, Views, ema_update
from trainers.models.heads import Encoded, MaskedNetwork
from trainers.models.masks import Mask, block_mask
from trainers.models.vit import VisionTransformer
from trainers.ranks import sum_over_ranks


class Ibot(Dino):
    """DINO with a second loss on hidden patches; `patch_center` (K,) is the moving mean of the teacher's patch scores."""

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

    def begin(self, num_samples: int, rng_key: int) -> None:
        self._rng_key = rng.key(rng_key, "masks")

    def _mask(self, views: Views) -> Mask:
        """The mask of these samples, made once per step: student, teacher and loss all need it."""
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
                rng_key=self._rng_key,
                device=views.sample.device,
            )
        return self._masks[positions]

    def inputs(self, views: Views, clock: Clock) -> tuple[Any, ...]:
        return views.crops, self._mask(views), True

    @torch.no_grad()
    def targets(self, views: Views, clock: Clock) -> Encoded:
        return self.teacher(views.crops[:1], self._mask(views), False)._replace(features=None)  # type: ignore[no-any-return]

    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        of_crops = super().loss(outputs, targets, views, clock)
        assert outputs.patches is not None
        assert targets.patches is not None
        config, weight = self.config, self._mask(views).weight
        losses, score_sums = [of_crops.loss], []
        centers = self.prototypes.split(self.patch_center)
        pairs = zip(self.patch_prototypes, self.teacher_patch_prototypes, strict=True)
        for level, (prototypes, teacher) in enumerate(pairs):
            with torch.no_grad():
                scores = teacher(self.prototypes.part(targets.patches, level)).float()
                assignments = self._teacher_targets(scores, centers[level], clock)
                score_sums.append(scores.sum(0))
            patches = F.normalize(self.prototypes.part(outputs.patches, level).float(), dim=-1)
            directions = prototypes.directions()
            of_patches = masked_cross_entropy(patches, directions, assignments, weight, config.student_temperature)
            losses.append(config.patch_weight * of_patches / (2 * len(views.sample)))
        num_patches = torch.full((), float(len(weight)), device=weight.device)
        remember = {**of_crops.remember, "patch_score_sum": torch.cat(score_sums), "num_patches": num_patches}
        return StepOutput(torch.stack(losses).sum(), of_crops.scalars, remember)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        super().after_step(clock, good, remember)
        if not self._shares_head:
            ema_update(self.teacher_patch_prototypes, self.patch_prototypes, (1 - self.momentum(clock)) * good)
        num_patches = sum_over_ranks(remember["num_patches"])
        mean = sum_over_ranks(remember["patch_score_sum"]) / num_patches.clamp_min(1)
        self._update_center(self.patch_center, mean, good * (num_patches > 0))
        self._masks.clear()
