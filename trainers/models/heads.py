"""Projection heads, prototypes, and the network that a method trains."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.models.batch_norm import GlobalBatchNorm
from trainers.models.masks import Mask
from trainers.models.vit import VisionTransformer


class Encoded(NamedTuple):
    """The outputs of a network for the crops of B samples."""

    embeddings: Tensor
    """(B, V, D): a projected embedding of each of V crops."""
    patches: Tensor | None = None
    """(M, D): projected embeddings of the hidden patches, where a method predicts those."""
    features: Tensor | None = None
    """(B, 2, F): the backbone's features of the global crops, where a method uses them."""

    @classmethod
    def concatenate(cls, pieces: Sequence["Encoded"]) -> "Encoded":
        """The outputs for the samples of all pieces, one piece after another."""
        return cls(*(None if tensors[0] is None else torch.cat(tensors) for tensors in zip(*pieces, strict=True)))  # type: ignore[arg-type]


class Network(nn.Module):
    """A backbone with a projector and, where a method has one, a predictor."""

    def __init__(self, backbone: nn.Module, projector: nn.Module, predictor: nn.Module | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.predictor = predictor
        self.features = torch.empty(0, feature_dim(backbone))
        """(B, D): the features of the first crops in the last forward pass, to judge the health of the training by."""

    def forward(self, crops: list[Tensor]) -> Encoded:
        """Crop groups [(V_i, B, 3, S_i, S_i)] to embeddings (B, V, D), V = sum of the V_i."""
        num_samples = crops[0].shape[1]
        groups = [group.flatten(0, 1) for group in crops]
        if isinstance(self.backbone, VisionTransformer):
            features = self.backbone.tokens(groups, orders=self._orders(self.backbone, groups)).features
        else:
            # Convolutions like channels that lie side by side: up to 1.5 times as fast on a CPU, and what tensor cores take.
            features = torch.cat([self.backbone(group.contiguous(memory_format=torch.channels_last)) for group in groups])
        self.features = features[:num_samples].detach()
        projected = self.projector(features)
        if self.predictor is not None:
            projected = self.predictor(projected)
        return Encoded(_by_sample(projected, num_samples))

    def _orders(self, backbone: VisionTransformer, groups: list[Tensor]) -> list[Tensor] | None:
        """Random orders of the samples for stochastic depth, from torch's generator; None for a teacher, which drops none."""
        if not self.training or not next(self.parameters()).requires_grad:
            return None
        device = groups[0].device
        generator = torch.cuda.default_generators[device.index or 0] if device.type == "cuda" else torch.default_generator
        return backbone.draw_orders([len(group) for group in groups], generator)


class MaskedNetwork(Network):
    """A Vision Transformer with a projector for class tokens and one, which may be the same, for masked patches."""

    def __init__(self, backbone: VisionTransformer, projector: nn.Module, patch_projector: nn.Module) -> None:
        super().__init__(backbone, projector)
        self.patch_projector = patch_projector

    def forward(self, crops: list[Tensor], mask: Mask, hides: bool) -> Encoded:  # type: ignore[override]
        """Crop groups to embeddings, embeddings of the M patches in `mask`, and features of the global crops.

        `hides`: whether the patches are hidden from the backbone, as they are from a student's.
        """
        num_samples = crops[0].shape[1]
        groups = [group.flatten(0, 1) for group in crops]
        backbone = self.backbone
        assert isinstance(backbone, VisionTransformer)
        tokens = backbone.tokens(groups, mask.hidden if hides else None, self._orders(backbone, groups))
        self.features = tokens.features[:num_samples].detach()
        patches = tokens.patches[0].flatten(0, 1).index_select(0, mask.rows)
        projected, features = self.projector(tokens.features), _by_sample(tokens.features, num_samples)
        return Encoded(_by_sample(projected, num_samples), self.patch_projector(patches), features[:, :2])


def _by_sample(rows: Tensor, num_samples: int) -> Tensor:
    """Rows of all samples, view after view (V * B, D), to (B, V, D)."""
    return rows.unflatten(0, (-1, num_samples)).transpose(0, 1)


class Prototypes(nn.Module):
    """K unit-length vectors; scores are cosines of the unit-length input with them.

    The same as a weight-normalised last layer with its gain fixed to 1 (DINO), and as weights that are renormalised before
    every step (SwAV).
    """

    def __init__(self, dim: int, num: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def directions(self) -> Tensor:
        """(K, D), each of length 1."""
        return F.normalize(self.weight, dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., K)."""
        return F.linear(F.normalize(x, dim=-1), self.directions())


class NestedPrototypes(nn.ModuleList):
    """Prototypes for every level of a nested projector, half as many for each level as for the one before."""

    def __init__(self, dim: int, num: int, levels: int) -> None:
        super().__init__(Prototypes(dim, max(2, num >> level)) for level in range(levels))
        self._dim = dim
        self._nums = [max(2, num >> level) for level in range(levels)]
        self.total = sum(self._nums)

    def __iter__(self) -> Iterator[Prototypes]:  # type: ignore[override]
        return super().__iter__()  # type: ignore[return-value]

    def part(self, x: Tensor, level: int) -> Tensor:
        """The output of the projector of one level: (..., levels * D) to (..., D)."""
        return x[..., level * self._dim : (level + 1) * self._dim]

    def split(self, per_prototype: Tensor) -> tuple[Tensor, ...]:
        """Split (total, ...) into the prototypes of each level."""
        return per_prototype.split(self._nums)


class _NestedProjector(nn.Module):
    """One projector for each prefix of the feature, their outputs side by side."""

    def __init__(self, projectors: list[nn.Module], dims: list[int]) -> None:
        super().__init__()
        self.projectors = nn.ModuleList(projectors)
        self._dims = dims

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat(
            [project(features[..., :dim]) for project, dim in zip(self.projectors, self._dims, strict=True)], dim=-1
        )


def nested_projector(backbone: nn.Module, levels: int, make: Callable[[int], nn.Module]) -> nn.Module:
    """`make(D)` for the backbone's D features; with more levels also for the first half of them, the first quarter, …

    (N, D) to (N, levels * outputs). Venkataramanan et al., "Franca: Nested Matryoshka Clustering for Scalable Visual
    Representation Learning", 2025.
    """
    if levels == 1:
        return make(feature_dim(backbone))
    dims = [feature_dim(backbone) >> level for level in range(levels)]
    return _NestedProjector([make(dim) for dim in dims], dims)


def feature_dim(backbone: nn.Module) -> int:
    """The number of features that a backbone gives."""
    return int(backbone.num_features)  # type: ignore[arg-type]


def dino_projector(in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """Three layers with GELU and no normalisation (Caron et al. 2021, appendix C)."""
    mlp = nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, out_dim),
    )
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return mlp


def mlp(dims: Sequence[int], *, last_norm: bool = False, bias: bool = True) -> nn.Sequential:
    """Linear layers from dims[0] over dims[1], … to dims[-1], with batch norm and ReLU between them.

    With `last_norm` a batch norm without weights follows the last layer (MoCo v3). `bias`: whether layers that a norm follows
    have one.
    """
    layers: list[nn.Module] = []
    for number, (inputs, outputs) in enumerate(pairwise(dims), start=1):
        last = number == len(dims) - 1
        layers.append(nn.Linear(inputs, outputs, bias=bias or (last and not last_norm)))
        if not last:
            layers += [GlobalBatchNorm(outputs), nn.ReLU()]
        elif last_norm:
            layers.append(GlobalBatchNorm(outputs, affine=False))
    return nn.Sequential(*layers)
