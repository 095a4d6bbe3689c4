"""The Vision Transformer, pre-norm, with a class token (Dosovitskiy et al., ICLR 2021), over packed crops of several sizes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainers.models.config import VitConfig
from trainers.models.packed import Group, Subset, add_branch, pack, take, unpack

Rotation = tuple[Tensor, Tensor]
"""Cosines and sines (tokens, head dim) of the angles by which queries and keys are rotated."""
_FEW_TOKENS = 256
"""Largest number of tokens whose attention may be kept in memory: tokens times tokens for every head and crop."""


class LayerNorm(nn.LayerNorm):
    """Layer norm of the fp32 residual stream, also with weights that FSDP gathered in bf16."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Attention(nn.Module):
    """Multi-head self-attention within each crop."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, groups: Sequence[Group], rotations: Sequence[Rotation] | None) -> Tensor:
        mixed = []
        for i, qkv in enumerate(unpack(self.qkv(x), groups)):
            q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            if rotations is not None:
                q, k = rotate(q, rotations[i]), rotate(k, rotations[i])
            mixed.append(attend(q, k, v).transpose(1, 2).flatten(2))
        return self.proj(pack(mixed))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k' / sqrt(dim)) v of (B, heads, tokens, dim)."""
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.shape[2] <= _FEW_TOKENS:
        # torch's fused kernel is slow there: forward and backward take 1.7 times as long at 197 tokens, and 13 times at 17.
        return torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, dim=-1) @ v
    return F.scaled_dot_product_attention(q, k, v)


class Mlp(nn.Module):
    """Two linear layers with GELU between them, four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """A gated MLP (Shazeer 2020) with as many weights as the plain one: 2/3 as wide inside, rounded up to a multiple of 8."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = (4 * dim * 2 // 3 + 7) // 8 * 8
        self.fc1 = nn.Linear(dim, 2 * hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.fc1(x).chunk(2, dim=-1)
        return self.fc2(F.silu(gate) * value)


class LayerScale(nn.Module):
    """A factor per channel on a residual branch, small at first (Touvron et al., ICCV 2021, section 2)."""

    def __init__(self, dim: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.gamma = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gamma, self.initial)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A transformer block: attention and MLP, each after a norm and on a residual branch."""

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        dim, initial = config.dim, config.layer_scale
        self.norm1 = LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, config.heads)
        self.ls1 = nn.Identity() if initial is None else LayerScale(dim, initial)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = SwiGlu(dim) if config.mlp == "swiglu" else Mlp(dim)
        self.ls2 = nn.Identity() if initial is None else LayerScale(dim, initial)

    def forward(
        self,
        x: Tensor,
        groups: Sequence[Group],
        rotations: Sequence[Rotation] | None,
        subsets: Sequence[Subset | None],
    ) -> Tensor:
        """Packed tokens (T, D) to packed tokens; `subsets`: the samples for attention and for the MLP, None: all."""
        x = add_branch(x, groups, subsets[0], lambda x, groups: self.ls1(self.attn(self.norm1(x), groups, rotations)))
        return add_branch(x, groups, subsets[1], lambda x, _: self.ls2(self.mlp(self.norm2(x))))


class PatchEmbed(nn.Module):
    """A linear map of each patch to a token."""

    def __init__(self, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # A convolution in name and layout, as in timm; computed as a matrix product.
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)

    def forward(self, crops: Sequence[Tensor]) -> list[Tensor]:
        """Crop groups [(B, 3, H, W), …] to the tokens of their patches [(B, H / P * W / P, D), …], row by row."""
        size = self.patch_size
        patches = [
            images.unflatten(3, (-1, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
            for images in crops
        ]
        embedded = F.linear(pack(patches), self.proj.weight.flatten(1), self.proj.bias)
        return unpack(embedded, [Group(len(group), group.shape[1]) for group in patches])


class Tokens(NamedTuple):
    """Normalised features of groups of crops."""

    features: Tensor
    """(B_0 + B_1 + …, D): one feature per crop, as `VisionTransformer.forward` returns them, group after group."""
    patches: list[Tensor]
    """(B_i, H_i / P * W_i / P, D) for every group, row by row."""


class VisionTransformer(nn.Module):
    """A Vision Transformer with timm's names of modules, so that weights can be exchanged; timm has no mask token, though.

    Takes crops of any multiple of the patch size. As in timm's plain models the class token has a learned position, and as
    in those with registers it then has none. Set `checkpoints_blocks` to recompute blocks in the backward pass instead of
    keeping their activations. To spare the memory of a whole copy, build it on the meta device, then `to_empty` and
    `init_weights`.
    """

    def __init__(self, config: VitConfig) -> None:
        super().__init__()
        self.config = config
        self.num_features = config.dim
        self.checkpoints_blocks = False
        self._grid = config.image_size // config.patch_size
        self._prefix = 1 + config.registers
        self._rates = [config.drop_path * i / max(1, config.depth - 1) for i in range(config.depth)]
        positions = self._grid**2 + (config.registers == 0)
        self.patch_embed = PatchEmbed(config.patch_size, config.dim)
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.reg_token = nn.Parameter(torch.empty(1, config.registers, config.dim)) if config.registers else None
        self.pos_embed = nn.Parameter(torch.empty(1, positions, config.dim)) if config.positions == "learned" else None
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.dim)) if config.mask_token else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        pools_mean = config.pool == "mean"
        # timm normalises before taking the class token, and after taking a mean.
        self.norm = nn.Identity() if pools_mean else nn.LayerNorm(config.dim, eps=1e-6)
        self.fc_norm = nn.LayerNorm(config.dim, eps=1e-6) if pools_mean else nn.Identity()
        self.init_weights()

    @torch.no_grad()
    def init_weights(self) -> None:
        """Draw all weights anew, from torch's default generator."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.LayerNorm | LayerScale):
                module.reset_parameters()
        nn.init.normal_(self.cls_token, std=1e-6)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=1e-6)
        if self.pos_embed is not None:
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
        if self.mask_token is not None:
            nn.init.zeros_(self.mask_token)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to features (B, D)."""
        return self.tokens([images]).features

    def tokens(self, crops: Sequence[Tensor], mask: Tensor | None = None, orders: Sequence[Tensor] | None = None) -> Tokens:
        """Normalised crops of several sizes [(B_i, 3, H_i, W_i), …] in one pass over their packed tokens.

        Where `mask` (B_0, patches) is true, the patches of the first group are hidden behind the mask token. `orders`, from
        `draw_orders`, says which samples stochastic depth leaves out. Raises ValueError if there are no orders to train with a
        `drop_path`, or a mask and no mask token.
        """
        if orders is None and self._rates[-1] and self.training and torch.is_grad_enabled():
            raise ValueError("training with drop_path needs the orders that draw_orders draws")
        samples = self._embed(crops, mask)
        groups = [Group(len(group), group.shape[1]) for group in samples]
        rotations = None if self.config.positions == "learned" else [self._rotation(group) for group in crops]
        x = pack(samples)
        for i, block in enumerate(self.blocks):
            subsets: list[Subset | None] = [None, None]
            if orders is not None:
                subsets = [take(groups, [order[2 * i + j] for order in orders], self._rates[i]) for j in (0, 1)]
            if self.checkpoints_blocks and torch.is_grad_enabled():
                # Blocks draw nothing at random: there is no state of a generator to restore.
                x = checkpoint(block, x, groups, rotations, subsets, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, groups, rotations, subsets)
        samples = unpack(x, groups)
        patches = [group[:, self._prefix :] for group in samples]
        if self.config.pool == "mean":
            features, norm = [group.mean(1) for group in patches], self.fc_norm
        else:
            features, norm = [group[:, 0] for group in samples], self.norm
        # Normalised separately, so that a compiler can leave out what the caller does not use.
        return Tokens(norm(torch.cat(features)), [norm(group) for group in patches])

    def draw_orders(self, samples: Sequence[int], generator: torch.Generator) -> list[Tensor] | None:
        """The random orders that `tokens` needs for groups of so many samples; None if nothing is ever dropped.

        (2 * depth, B_i) int64 for each group, on the generator's device: every branch of every block runs on the first samples
        of its order. Seed the generator from `curation.base.rng.key` of the step and the rank. The dropped samples depend on
        the batch of the rank, and so on the number of ranks.
        """
        if not self._rates[-1]:
            return None
        size, device = 2 * len(self.blocks), generator.device
        return [torch.rand(size, num, generator=generator, device=device).argsort(dim=1) for num in samples]

    def _embed(self, crops: Sequence[Tensor], mask: Tensor | None) -> list[Tensor]:
        """Crop groups to the first tokens of every group (B_i, tokens, D): class token, registers, patches."""
        samples = self.patch_embed(crops)
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("a mask needs encoder.mask_token=true")
            samples[0] = torch.where(mask.unsqueeze(-1), self.mask_token.to(samples[0].dtype), samples[0])
        prefix: Tensor = self.cls_token
        if self.reg_token is not None:
            prefix = torch.cat([prefix, self.reg_token], dim=1)
        elif self.pos_embed is not None:
            prefix = prefix + self.pos_embed[:, :1]
        if self.pos_embed is not None:
            samples = [group + self._positions(*self._shape(images)) for group, images in zip(samples, crops, strict=True)]
        return [torch.cat([prefix.expand(len(group), -1, -1), group], dim=1) for group in samples]

    def _shape(self, images: Tensor) -> tuple[int, int]:
        """Rows and columns of patches."""
        return images.shape[2] // self.config.patch_size, images.shape[3] // self.config.patch_size

    def _positions(self, height: int, width: int) -> Tensor:
        """Patch position embeddings (1, height * width, D), interpolated as timm does if the crop has another grid."""
        assert self.pos_embed is not None
        positions = self.pos_embed[:, -(self._grid**2) :]
        if (height, width) == (self._grid, self._grid):
            return positions
        square = positions.transpose(1, 2).unflatten(2, (self._grid, self._grid)).float()
        resized = F.interpolate(square, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return resized.flatten(2).transpose(1, 2).to(positions.dtype)

    def _rotation(self, images: Tensor) -> Rotation:
        """The rotation of every token of such images; class token and registers are not rotated."""
        cosines, sines = axial_rotation(*self._shape(images), self.config.dim // self.config.heads, images.device)
        prefix = (self._prefix, cosines.shape[1])
        return torch.cat([cosines.new_ones(prefix), cosines]), torch.cat([sines.new_zeros(prefix), sines])


def axial_rotation(height: int, width: int, dim: int, device: torch.device) -> Rotation:
    """Rotary positions of a grid of patches, row by row: cosines and sines (height * width, dim) float32.

    With x and y the centres of the patches on [-1, 1], whatever the size of the crop, channel pair j of the first dim / 4 turns
    by 2 pi y / 100^(4j / dim), and of the second dim / 4 by the same of x (Siméoni et al., "DINOv3", 2025, section 3.2, and the
    constants of its code).
    """
    periods = 100 ** (torch.arange(dim // 4, device=device) * (4 / dim))
    y, x = ((2 * torch.arange(size, device=device) + 1) / size - 1 for size in (height, width))
    turns = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).unsqueeze(-1) / periods
    angles = (2 * math.pi * turns).flatten(2).flatten(0, 1).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys (B, heads, tokens, dim), with channels j and j + dim / 2 turned as a pair."""
    cosines, sines = rotation
    first, second = x.chunk(2, dim=-1)
    return (x * cosines + torch.cat([-second, first], dim=-1) * sines).to(x.dtype)
