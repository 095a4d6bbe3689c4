"""Colours of crops: flip, jitter, grayscale, blur, solarize and normalise, as torchvision's transforms of float images do.

Applies changes that are drawn elsewhere. Crops whose jitter has the same order are processed together, in place, as many at a
time as stay in a core's cache: on the CPU a pass over memory costs more than the arithmetic in it.
"""

import itertools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curation.base.threads import one_thread
from trainers.tensor_memory import recycled_empty

ORDERS = tuple(itertools.permutations(range(4)))
"""The 24 orders of brightness, contrast, saturation and hue: torchvision's ColorJitter draws one for each image."""
BLUR_RADIUS = 4
"""Radius of the blur in pixels: a kernel of 9, as in DINOv2."""
_GRAY = (0.2989, 0.587, 0.114)
_CACHED_PIXELS = 2**16
_WHITE = torch.tensor(255.0)
_MIN_TAP = 1e-5
"""Smallest weight of a tap of a blur that is not left out: lighter ones change no pixel by a hundredth of a level."""


@dataclass(frozen=True)
class Changes:
    """The colour changes of N crops, applied in the order of the fields."""

    flip: np.ndarray
    """(N,) bool: mirrored."""
    order: np.ndarray
    """(N,) int64: index into ORDERS; -1: no jitter."""
    jitter: np.ndarray
    """(N, 4) float32: the factors of brightness, contrast and saturation, and the turn of the hue as a share of the circle."""
    gray: np.ndarray
    """(N,) bool: converted to grayscale."""
    sigma: np.ndarray
    """(N,) float32: standard deviation of the blur in pixels; 0: no blur."""
    solarize: np.ndarray
    """(N,) bool: values of at least a half are inverted."""


def recolour(crops: Tensor, changes: Changes, mean: Sequence[float] = (0, 0, 0), std: Sequence[float] = (1, 1, 1)) -> Tensor:
    """Change `crops` (N, 3, S, S) uint8, scale them to [0, 1] and normalise by `mean` and `std`: (N, 3, S, S) float32."""
    on_cpu = crops.device.type == "cpu"
    out = recycled_empty(crops.shape) if on_cpu else torch.empty(crops.shape, device=crops.device)
    chunk = max(1, _CACHED_PIXELS // crops[0, 0].numel()) if len(crops) else 1
    by_order = np.lexsort((changes.sigma, changes.order))
    groups = [
        same_order[start : start + chunk]
        for same_order in np.split(by_order, np.flatnonzero(np.diff(changes.order[by_order])) + 1)
        for start in range(0, len(same_order), chunk)
    ]
    # Values stay in [0, 255] until the last two passes.
    deviation = torch.tensor(std, device=crops.device)[:, None, None]
    scale, shift = 1 / (255 * deviation), -torch.tensor(mean, device=crops.device)[:, None, None] / deviation

    scratch = _Scratch.of(chunk, *crops.shape[2:], device=crops.device)
    sources, results = crops.unbind(), out.unbind()
    with one_thread() if on_cpu else nullcontext():
        for chosen in groups:
            group = scratch.rows(0, len(chosen))
            for image, index in zip(group.images.unbind(), chosen.tolist(), strict=True):
                image.copy_(sources[index].flip(2) if changes.flip[index] else sources[index])
            _change(group, changes, chosen)
            for image, index in zip(group.images.unbind(), chosen.tolist(), strict=True):
                torch.mul(image, scale, out=results[index]).add_(shift)
    return out


@dataclass(frozen=True)
class _Scratch:
    """Work space for N crops that is used again for every group, so that it stays in the cache."""

    images: Tensor
    """(N, 3, S, S) float32: the crops."""
    other: Tensor
    """(N, 3, S, S): intermediate results, as are the following."""
    planes: Tensor
    """(3, N, 1, S, S)."""
    wide: Tensor
    """(N, 3, S + 8, S + 8)."""

    @classmethod
    def of(cls, num: int, height: int, width: int, *, device: torch.device) -> "_Scratch":
        space = torch.empty(9, num, height, width, device=device)
        pairs = space[:6].view(2, num, 3, height, width)
        wide = torch.empty(num, 3, height + 2 * BLUR_RADIUS, width + 2 * BLUR_RADIUS, device=device)
        return cls(pairs[0], pairs[1], space[6:, :, None], wide)

    def rows(self, first: int, end: int) -> "_Scratch":
        """The space of some of the crops."""
        rows = slice(first, end)
        return _Scratch(self.images[rows], self.other[rows], self.planes[:, rows], self.wide[rows])


def _change(scratch: _Scratch, changes: Changes, chosen: np.ndarray) -> None:
    """Apply the changes at `chosen` to the images, in place. They have one order of jitter and ascending sigmas."""
    images, num = scratch.images, len(chosen)
    if (order := changes.order[chosen[0]]) >= 0:
        _jitter(scratch, torch.from_numpy(changes.jitter[chosen]).to(images.device), ORDERS[order])
    for number in np.flatnonzero(changes.gray[chosen]).tolist():
        images[number].copy_(_grayscale(scratch.rows(number, number + 1))[0])
    sharp = int((changes.sigma[chosen] == 0).sum())
    if sharp < num:
        _blur(scratch.rows(sharp, num), changes.sigma[chosen[sharp:]])
    for number in np.flatnonzero(changes.solarize[chosen]).tolist():
        torch.minimum(images[number], torch.sub(_WHITE, images[number], out=scratch.other[number]), out=images[number])


def _grayscale(scratch: _Scratch) -> Tensor:
    """The gray values (N, 1, S, S) of the images."""
    red, green, blue = scratch.images.split(1, dim=1)
    gray = torch.mul(red, _GRAY[0], out=scratch.planes[0])
    return gray.add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])


def _jitter(scratch: _Scratch, amount: Tensor, order: Sequence[int]) -> None:
    """Change brightness, contrast, saturation and hue of the images in `order`, in place, by `amount` (N, 4)."""
    images = scratch.images
    for kind in order:
        by = amount[:, kind, None, None, None]
        if kind == 0:
            images.mul_(by).clamp_(0, 255)
        elif kind == 1:
            mean = images.mean((2, 3)) @ images.new_tensor(_GRAY)
            images.mul_(by).add_((1 - by) * mean[:, None, None, None]).clamp_(0, 255)
        elif kind == 2:
            torch.lerp(_grayscale(scratch), images, by, out=images).clamp_(0, 255)
        else:
            _turn_hue(scratch, by)


def _turn_hue(scratch: _Scratch, turn: Tensor) -> None:
    """Rotate the hue of the images by `turn` (N, 1, 1, 1) of the circle, in place.

    With hue h in [0, 1), value v and chroma c, the channels of a colour are v - 2c + 6c clamp(|h - s|, 1/6, 1/3), with |.| the
    distance on the circle, and s a half for red, 5/6 for green and 1/6 for blue: HSV to RGB in closed form.
    """
    red, green, blue = scratch.images.split(1, dim=1)
    value, chroma, hue = scratch.planes
    torch.maximum(torch.maximum(red, green, out=value), blue, out=value)
    torch.minimum(torch.minimum(red, green, out=chroma), blue, out=chroma)
    torch.sub(value, chroma, out=chroma)
    # c times the hue in sixths, by which channel is the largest. Comparisons are far faster as numbers than as booleans.
    largest, if_largest, _ = scratch.other.split(1, dim=1)
    torch.sub(red, green, out=hue).add_(chroma, alpha=4)
    torch.sub(blue, red, out=if_largest).add_(chroma, alpha=2)
    hue.lerp_(if_largest, torch.eq(green, value, out=largest))
    hue.lerp_(torch.sub(green, blue, out=if_largest), torch.eq(red, value, out=largest))
    chroma.mul_(6)
    hue.div_(torch.clamp(chroma, min=1e-6, out=largest)).add_(turn)

    distance = torch.sub(hue, hue.new_tensor([1 / 2, 5 / 6, 1 / 6])[:, None, None], out=scratch.other)
    distance.sub_(torch.round(distance, out=scratch.images)).abs_().clamp_(1 / 6, 1 / 3)
    torch.addcmul(value.sub_(chroma, alpha=1 / 3), distance, chroma, out=scratch.images)


def _blur(scratch: _Scratch, sigma: np.ndarray) -> None:
    """Gaussian blur of the images by `sigma` (N,) in place, their borders reflected."""
    weights = np.exp(-0.5 * (np.arange(BLUR_RADIUS + 1)[:, None] / sigma) ** 2)
    weights /= weights[0] + 2 * weights[1:].sum(0)
    radius = int((weights.max(1) > _MIN_TAP).sum()) - 1
    taps = torch.from_numpy(weights.astype(np.float32)).to(scratch.images.device)[:, :, None, None, None]
    wide = torch.ops.aten.reflection_pad2d.out(scratch.images, [BLUR_RADIUS] * 4, out=scratch.wide)
    for dim in (2, 3):
        size = scratch.images.shape[dim]
        sums = wide.narrow(dim, BLUR_RADIUS, size) * taps[0]
        for step in range(1, radius + 1):
            for place in (BLUR_RADIUS - step, BLUR_RADIUS + step):
                sums.addcmul_(wide.narrow(dim, place, size), taps[step])
        wide = sums
    scratch.images.copy_(wide)
