"""Block masks: the patches that are hidden from a student."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from trainers.tensor_memory import to_device

_MIN_BLOCK = 4
_ASPECT = 0.3
_TRIES = 10


@dataclass(frozen=True)
class Mask:
    """Hidden patches of two global crops of B samples, on the device, with sizes that the host knows."""

    hidden: Tensor
    """(2 * B, N) bool, view first, as the crops lie in their group."""
    rows: Tensor
    """(M,) int64: indices of the hidden patches in the flattened (2 * B * N), sample by sample."""
    weight: Tensor
    """(M,) float32: one over the number of hidden patches of the crop."""


def block_mask(
    positions: np.ndarray,
    grid: tuple[int, int],
    *,
    probability: float,
    ratio: tuple[float, float],
    rng_key: int,
    device: torch.device,
) -> Mask:
    """Hide a uniform share of the patches, in blocks, of every global crop with a `probability` (BEiT; iBOT, section 3.2).

    `positions` (B,) are those of the samples in the endless stream, so that masks do not depend on the number of ranks.
    """
    hidden = np.zeros((2, len(positions), *grid), dtype=bool)
    for sample, position in enumerate(positions):
        for view in range(2):
            draws = rng.generator(rng.key(rng_key, int(position), view))
            if draws.random() < probability:
                _hide(hidden[view, sample], round(draws.uniform(*ratio) * grid[0] * grid[1]), draws)
    flat = hidden.reshape(2, len(positions), -1)
    samples, views, patches = np.nonzero(flat.transpose(1, 0, 2))
    rows = (views * len(positions) + samples) * flat.shape[2] + patches
    weight = 1 / flat.sum(2)[views, samples].astype(np.float32)
    arrays = (flat.reshape(-1, flat.shape[2]), rows, weight)
    return Mask(*(to_device(device, array) for array in arrays))


def _hide(crop: np.ndarray, num: int, draws: np.random.Generator) -> None:
    """Hide `num` patches of a crop (h, w), in blocks as long as one fits."""
    height, width = crop.shape
    while (remaining := num - int(crop.sum())) > 0:
        for _ in range(_TRIES):
            area = draws.uniform(min(_MIN_BLOCK, remaining), remaining)
            aspect = math.exp(draws.uniform(math.log(_ASPECT), -math.log(_ASPECT)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (0 < h <= height and 0 < w <= width):
                continue
            top, left = draws.integers(height - h + 1), draws.integers(width - w + 1)
            block = crop[top : top + h, left : left + w]
            if 0 < (~block).sum() <= remaining:
                block[:] = True
                break
        else:
            crop.flat[draws.choice(np.flatnonzero(~crop), remaining, replace=False)] = True
