"""Weights that others trained: safetensors files with the names that timm gives them, into our networks or timm's."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from curation.base.errors import DataError
from trainers.models.vit import VisionTransformer

_POSITIONS = "pos_embed"
_MASK_TOKEN = "mask_token"  # noqa: S105 - no password
_SHOWN = 4


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Give `backbone` the weights in the file at `path`, without their classifier.

    Positions that were learned for another image size are interpolated. Raises DataError with everything that does not fit.
    """
    found = _without_classifier(_read(path), backbone)
    if isinstance(backbone, VisionTransformer):
        found = _named_as_ours(found)
    wanted = backbone.state_dict()
    if _POSITIONS in found and _POSITIONS in wanted:
        found[_POSITIONS] = _resampled(found[_POSITIONS], wanted[_POSITIONS], backbone)
    may_lack = {name for name in wanted if name == _MASK_TOKEN or name.endswith(".num_batches_tracked")}
    lacks = [name for name in wanted if name not in found and name not in may_lack]
    unknown = [name for name in found if name not in wanted]
    other = [
        f"{name} {_shape(found[name])}, here {_shape(wanted[name])}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    problems = [("lacks", lacks), ("has no place for", unknown), ("has in another shape", other)]
    if any(names for _, names in problems):
        told = "; ".join(f"{what} {_listed(names)}" for what, names in problems if names)
        raise DataError(f"{path} does not fit the encoder: it {told}. {_advice(found, backbone)}")
    backbone.load_state_dict(found, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read as safetensors: {error}. Give encoder.weights such a file, with timm's names; other kinds "
            "may run code when they are opened."
        ) from error


def _without_classifier(found: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """What an encoder is made of. A mask token stays behind, too: it belongs to the method that trained it."""
    said = getattr(backbone, "pretrained_cfg", {}).get("classifier", "head") or ()
    heads = [_MASK_TOKEN, *([said] if isinstance(said, str) else said)]
    return {name: x for name, x in found.items() if not any(f"{name}.".startswith(f"{head}.") for head in heads)}


def _named_as_ours(found: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm keeps DINOv3 in its class Eva, which names the factors of residual branches otherwise and splits or omits biases."""
    result = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in found.items()}
    for name in [name for name in result if name.endswith(".attn.qkv.weight")]:
        attention = name.removesuffix("qkv.weight")
        none = result[name].new_zeros(result[name].shape[:1].numel() // 3)
        queries, values = (result.pop(f"{attention}{which}_bias", none) for which in "qv")
        result.setdefault(f"{attention}qkv.bias", torch.cat([queries, none, values]))
    return result


def _resampled(positions: Tensor, wanted: Tensor, backbone: Any) -> Tensor:
    """Learned positions (1, N, D) for the grid of `backbone`, where they fit but for that."""
    if isinstance(backbone, VisionTransformer):
        prefix, side = int(backbone.config.registers == 0), backbone.config.image_size // backbone.config.patch_size
        grid = [side, side]
    elif hasattr(backbone, "num_prefix_tokens"):
        prefix = 0 if getattr(backbone, "no_embed_class", False) else backbone.num_prefix_tokens
        grid = list(backbone.patch_embed.grid_size)
    else:
        return positions
    num = positions.shape[1] - prefix if positions.dim() == wanted.dim() else 0
    if positions.shape == wanted.shape or positions.shape[2:] != wanted.shape[2:] or num < 1 or math.isqrt(num) ** 2 != num:
        return positions
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(positions.float(), grid, num_prefix_tokens=prefix)


def _advice(found: dict[str, Tensor], backbone: nn.Module) -> str:
    """What to set, read off the tensors."""
    if not isinstance(backbone, VisionTransformer):
        return "Set encoder.model to the name that timm has for the model of the file."
    dims = {"cls_token": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "blocks.0.mlp.fc2.weight": 2}
    if any(name not in found or found[name].dim() != dim for name, dim in dims.items()):
        return "It is no Vision Transformer with a class token and timm's names: try encoder.type=timm, or rename its tensors."
    token, patches, into, out = (found[name] for name in dims)
    numbers = [int(match[1]) for name in found if (match := re.match(r"blocks\.(\d+)\.", name))]
    says = {
        "dim": token.shape[2],
        "depth": 1 + max(numbers),
        "patch_size": patches.shape[3],
        "registers": found["reg_token"].shape[-2] if "reg_token" in found else 0,
        "layer_scale": "1e-5" if "blocks.0.ls1.gamma" in found else "null",
        "mlp": "swiglu" if len(into) == 2 * out.shape[1] else "gelu",
        "positions": "learned" if _POSITIONS in found else "rope",
        "pool": "mean" if "fc_norm.weight" in found else "class",
    }
    return f"The file looks like encoder {{{', '.join(f'{name}: {value}' for name, value in says.items())}}}."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
