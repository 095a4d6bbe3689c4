"""Pretrained weights of other projects: safetensors files with timm's names, loaded into VisionTransformer or timm's models."""

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
_MAX_LISTED = 4


def load_weights(backbone: nn.Module, path: Path) -> None:
    """Give `backbone` the weights in the file at `path`, without their classifier.

    Positions that were learned for another image size are interpolated. Raises DataError with everything that does not fit.
    """
    weights = _without_classifier(_read(path), backbone)
    if isinstance(backbone, VisionTransformer):
        weights = _renamed_for_vit(weights)
    state = backbone.state_dict()
    if _POSITIONS in weights and _POSITIONS in state:
        weights[_POSITIONS] = _resampled(weights[_POSITIONS], state[_POSITIONS], backbone)
    optional = {name for name in state if name == _MASK_TOKEN or name.endswith(".num_batches_tracked")}
    missing = [name for name in state if name not in weights and name not in optional]
    unknown = [name for name in weights if name not in state]
    reshaped = [
        f"{name} {_shape(weights[name])}, here {_shape(state[name])}"
        for name in state
        if name in weights and weights[name].shape != state[name].shape
    ]
    problems = [("lacks", missing), ("has no place for", unknown), ("has in another shape", reshaped)]
    if any(names for _, names in problems):
        misfits = "; ".join(f"{what} {_listed(names)}" for what, names in problems if names)
        raise DataError(f"{path} does not fit the encoder: it {misfits}. {_advice(weights, backbone)}")
    backbone.load_state_dict(weights, strict=False)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path} cannot be read as safetensors: {error}. Give encoder.weights such a file, with timm's names; other kinds "
            "may run code when they are opened."
        ) from error


def _without_classifier(weights: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """The weights of the encoder alone. A mask token is left out, too: it belongs to the method that trained it."""
    classifiers = getattr(backbone, "pretrained_cfg", {}).get("classifier", "head") or ()
    heads = [_MASK_TOKEN, *([classifiers] if isinstance(classifiers, str) else classifiers)]
    return {name: x for name, x in weights.items() if not any(f"{name}.".startswith(f"{head}.") for head in heads)}


def _renamed_for_vit(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of timm's class Eva, which has DINOv3: other names of layer scales, split or missing biases."""
    result = {re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name): tensor for name, tensor in weights.items()}
    for name in [name for name in result if name.endswith(".attn.qkv.weight")]:
        attention = name.removesuffix("qkv.weight")
        zeros = result[name].new_zeros(result[name].shape[:1].numel() // 3)
        queries, values = (result.pop(f"{attention}{which}_bias", zeros) for which in "qv")
        result.setdefault(f"{attention}qkv.bias", torch.cat([queries, zeros, values]))
    return result


def _resampled(positions: Tensor, target: Tensor, backbone: Any) -> Tensor:
    """Learned positions (1, N, D) interpolated to the grid of `backbone` if only the grid differs from `target`."""
    if isinstance(backbone, VisionTransformer):
        prefix, side = int(backbone.config.registers == 0), backbone.config.image_size // backbone.config.patch_size
        grid = [side, side]
    elif hasattr(backbone, "num_prefix_tokens"):
        prefix = 0 if getattr(backbone, "no_embed_class", False) else backbone.num_prefix_tokens
        grid = list(backbone.patch_embed.grid_size)
    else:
        return positions
    num = positions.shape[1] - prefix if positions.dim() == target.dim() else 0
    if positions.shape == target.shape or positions.shape[2:] != target.shape[2:] or num < 1 or math.isqrt(num) ** 2 != num:
        return positions
    from timm.layers import resample_abs_pos_embed

    return resample_abs_pos_embed(positions.float(), grid, num_prefix_tokens=prefix)


def _advice(weights: dict[str, Tensor], backbone: nn.Module) -> str:
    """The settings to choose, derived from the names and shapes of the tensors."""
    if not isinstance(backbone, VisionTransformer):
        return "Set encoder.model to the name that timm has for the model of the file."
    dims = {"cls_token": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "blocks.0.mlp.fc2.weight": 2}
    if any(name not in weights or weights[name].dim() != dim for name, dim in dims.items()):
        return (
            "It is not a Vision Transformer with a class token and timm's names: try encoder.type=timm, or rename its tensors."
        )
    token, patches, into, out = (weights[name] for name in dims)
    numbers = [int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))]
    settings = {
        "dim": token.shape[2],
        "depth": 1 + max(numbers),
        "patch_size": patches.shape[3],
        "registers": weights["reg_token"].shape[-2] if "reg_token" in weights else 0,
        "layer_scale": "1e-5" if "blocks.0.ls1.gamma" in weights else "null",
        "mlp": "swiglu" if len(into) == 2 * out.shape[1] else "gelu",
        "positions": "learned" if _POSITIONS in weights else "rope",
        "pool": "mean" if "fc_norm.weight" in weights else "class",
    }
    return f"The file looks like encoder {{{', '.join(f'{name}: {value}' for name, value in settings.items())}}}."


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"
