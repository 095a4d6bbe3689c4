"""A small Vision Transformer, pre-norm, with a class token (Dosovitskiy et al., ICLR 2021)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainers.config import VitConfig


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) to a grid of tokens (B, D, H / P, W / P)."""
        return self.proj(images)


class VisionTransformer(nn.Module):
    """Modules carry timm's names, so that weights travel both ways. Crops of any multiple of the patch size are taken."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.num_features = config.dim
        self._grid = config.image_size // config.patch_size
        self.patch_embed = PatchEmbed(config.patch_size, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + self._grid**2, config.dim))
        self.blocks = nn.ModuleList(Block(config.dim, config.heads) for _ in range(config.depth))
        self._pools_mean = config.pool == "mean"
        # timm normalises before taking the class token, and after taking a mean.
        self.norm = nn.Identity() if self._pools_mean else nn.LayerNorm(config.dim, eps=1e-6)
        self.fc_norm = nn.LayerNorm(config.dim, eps=1e-6) if self._pools_mean else nn.Identity()
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.normal_(self.cls_token, std=1e-6)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to features (B, D)."""
        grid = self.patch_embed(images)
        tokens = grid.flatten(2).transpose(1, 2) + self._positions(grid.shape[2], grid.shape[3])
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(tokens), -1, -1)
        x = torch.cat([first, tokens], dim=1)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc_norm(x[:, 1:].mean(1) if self._pools_mean else x[:, 0])

    def _positions(self, height: int, width: int) -> Tensor:
        """Patch position embeddings (1, height * width, D), interpolated if the crop has another grid."""
        positions = self.pos_embed[:, 1:]
        if (height, width) == (self._grid, self._grid):
            return positions
        square = positions.transpose(1, 2).unflatten(2, (self._grid, self._grid))
        resized = F.interpolate(square, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return resized.flatten(2).transpose(1, 2)
