"""Projection heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.distributed import GlobalBatchNorm


class Prototypes(nn.Module):
    """K unit-length vectors; scores are cosines of the unit-length input with them.

    What a weight-normalised last layer with its gain fixed to 1 computes (DINO), and what renormalising the weights before
    every step computes (SwAV).
    """

    def __init__(self, dim: int, num: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, dim))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) to (B, K)."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))


class Head(nn.Module):
    """A projection MLP and prototypes on its unit-length output."""

    def __init__(self, projection: nn.Module, dim: int, prototypes: int) -> None:
        super().__init__()
        self.projection = projection
        self.prototypes = Prototypes(dim, prototypes)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) to prototype scores (B, K)."""
        return self.prototypes(self.projection(features))


def dino_head(in_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int) -> Head:
    """Three layers with GELU and no normalisation (Caron et al. 2021, appendix C)."""
    mlp = nn.Sequential(
        nn.Linear(in_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, hidden_dim),
        nn.GELU(),
        nn.Linear(hidden_dim, bottleneck_dim),
    )
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return Head(mlp, bottleneck_dim, prototypes)


def swav_head(in_dim: int, hidden_dim: int, bottleneck_dim: int, prototypes: int) -> Head:
    """Two layers with batch norm and ReLU (Caron et al. 2020)."""
    mlp = nn.Sequential(
        nn.Linear(in_dim, hidden_dim), GlobalBatchNorm(hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, bottleneck_dim)
    )
    return Head(mlp, bottleneck_dim, prototypes)


class MultiCrop(nn.Module):
    """A backbone and a head applied to crops of several sizes."""

    def __init__(self, backbone: nn.Module, head: Head) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Crop groups [(V_i, B, 3, S_i, S_i)] to prototype scores (V, B, K), V = sum of the V_i."""
        num_samples = crops[0].shape[1]
        features = [self.backbone(group.flatten(0, 1)) for group in crops if len(group)]
        scores: Tensor = self.head(torch.cat(features))
        return scores.unflatten(0, (-1, num_samples))
