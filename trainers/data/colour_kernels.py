"""Colours of crops on a GPU (Triton): each crop is read once and written once, whatever changes.

Brightness, contrast, saturation and hue come in any order; what a crop does not change is skipped. Contrast needs the mean of
its input, which a kernel computes before. A blur needs neighbours: a crop to be blurred is stored aside, its columns and rows
are blurred in two passes, and the second one solarizes and normalises.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from trainers.data.colour import BLUR_RADIUS, ORDERS, Changes
from trainers.tensor_memory import to_device

_PIXELS = 1024
_NUMBERS = 13


def recolour(
    crops: Tensor,
    changes: Changes,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same as `colour.recolour`, in `dtype`; for crops whose sides are larger than the radius of the blur."""
    num, _, height, width = crops.shape
    crops, device = crops.contiguous(memory_format=torch.channels_last), crops.device  # as the loader makes them
    out = torch.empty(crops.shape, dtype=dtype, device=device)
    blurred = int((changes.sigma > 0).sum())
    aside = torch.empty(2, blurred, 3, height, width, device=device)
    table = to_device(device, _table(changes))
    normal = torch.tensor([*mean, *std], dtype=torch.float32).to(device, non_blocking=True)
    tiles = triton.cdiv(height * width, _PIXELS)
    sums = torch.empty(num, tiles, device=device)
    sizes = {"HEIGHT": height, "WIDTH": width, "NUMBERS": _NUMBERS, "PIXELS": _PIXELS}
    if num:
        _gray_sums[(num, tiles)](crops, table, sums, **sizes)
        gray = sums.sum(1) / (height * width)  # not by atomic additions, whose order changes the last bits
        _colours[(num, tiles)](crops, table, gray, normal, aside, out, **sizes)
    if blurred:
        chosen = to_device(device, np.flatnonzero(changes.sigma > 0))
        for last, (x, into) in enumerate(((aside[0], aside[1]), (aside[1], out))):
            _blur[(blurred, 3, tiles)](x, chosen, table, normal, into, LAST=bool(last), RADIUS=BLUR_RADIUS, **sizes)
    return out


def _table(changes: Changes) -> np.ndarray:
    """(N, _NUMBERS) float32: the kinds of jitter in order, amounts, flip, gray, sigma, solarize, place if blurred."""
    orders = np.array([*ORDERS, (-1, -1, -1, -1)], dtype=np.float32)[changes.order]
    place = np.where(changes.sigma > 0, np.cumsum(changes.sigma > 0) - 1, -1)
    rest = np.stack([changes.flip, changes.gray, changes.sigma, changes.solarize, place], axis=1)
    return np.concatenate([orders, changes.jitter, rest], axis=1).astype(np.float32)


@triton.jit
def _gray(red, green, blue):
    return 0.2989 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _of_hue(hue, start, value, chroma):
    """A channel of a colour, by the formula of `colour._turn_hue`."""
    distance = hue - start
    distance = tl.abs(distance - tl.floor(distance + 0.5))
    return value - 6 * chroma * tl.minimum(tl.maximum(1.0 / 3 - distance, 0.0), 1.0 / 6)


@triton.jit
def _change(red, green, blue, kind, by, mean):
    """One kind of jitter on float32 channels in [0, 255]; `mean` is the mean gray, for contrast."""
    if kind == 0:
        red, green, blue = _clamp(red * by), _clamp(green * by), _clamp(blue * by)
    elif kind == 1:
        rest = (1 - by) * mean
        red, green, blue = _clamp(red * by + rest), _clamp(green * by + rest), _clamp(blue * by + rest)
    elif kind == 2:
        rest = (1 - by) * _gray(red, green, blue)
        red, green, blue = _clamp(red * by + rest), _clamp(green * by + rest), _clamp(blue * by + rest)
    elif kind == 3:
        value = tl.maximum(tl.maximum(red, green), blue)
        chroma = value - tl.minimum(tl.minimum(red, green), blue)
        sixths = tl.where(green == value, blue - red + 2 * chroma, red - green + 4 * chroma)
        sixths = tl.where(red == value, green - blue, sixths)
        hue = sixths / tl.maximum(6 * chroma, 1e-6) + by
        red = _of_hue(hue, 1.0 / 2, value, chroma)
        green = _of_hue(hue, 5.0 / 6, value, chroma)
        blue = _of_hue(hue, 1.0 / 6, value, chroma)
    return red, green, blue


@triton.jit
def _load(crops, row, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, PIXELS: tl.constexpr):
    """The pixels of this program: positions (PIXELS,), whether they exist, and channels, mirrored if the crop is."""
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    real = pixel < HEIGHT * WIDTH
    column = pixel % WIDTH
    mirrored = pixel - column + (WIDTH - 1 - column)
    source = tl.where(tl.load(row + 8) > 0, mirrored, pixel)
    at = crops + tl.program_id(0).to(tl.int64) * 3 * HEIGHT * WIDTH + 3 * source
    red = tl.load(at, mask=real, other=0).to(tl.float32)
    green = tl.load(at + 1, mask=real, other=0).to(tl.float32)
    blue = tl.load(at + 2, mask=real, other=0).to(tl.float32)
    return pixel, real, red, green, blue


@triton.jit
def _gray_sums(
    crops, table, sums, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, NUMBERS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """Sum the gray values of a tile, as they are just before contrast is changed."""
    row = table + tl.program_id(0) * NUMBERS
    total = 0.0
    if tl.load(row) >= 0:
        _, real, red, green, blue = _load(crops, row, HEIGHT, WIDTH, PIXELS)
        before_contrast = True
        for turn in tl.static_range(4):
            kind = tl.load(row + turn).to(tl.int32)
            before_contrast = before_contrast & (kind != 1)
            if before_contrast:
                red, green, blue = _change(red, green, blue, kind, tl.load(row + 4 + kind), 0.0)
        total = tl.sum(tl.where(real, _gray(red, green, blue), 0.0))
    tl.store(sums + tl.program_id(0) * tl.num_programs(1) + tl.program_id(1), total)


@triton.jit
def _finish(x, channel, solarize, normal):
    """Solarize and normalise a channel in [0, 255]."""
    x = tl.where(solarize > 0, tl.minimum(x, 255 - x), x)
    return (x / 255 - tl.load(normal + channel)) / tl.load(normal + 3 + channel)


@triton.jit
def _colours(
    crops,
    table,
    gray_mean,
    normal,
    aside,
    out,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    NUMBERS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    row = table + tl.program_id(0) * NUMBERS
    pixel, real, red, green, blue = _load(crops, row, HEIGHT, WIDTH, PIXELS)
    mean = tl.load(gray_mean + tl.program_id(0))
    for turn in tl.static_range(4):
        kind = tl.load(row + turn).to(tl.int32)
        if kind >= 0:
            red, green, blue = _change(red, green, blue, kind, tl.load(row + 4 + kind), mean)
    if tl.load(row + 9) > 0:
        red = _gray(red, green, blue)
        green, blue = red, red
    place = tl.load(row + 12).to(tl.int32)
    if place >= 0:
        target = aside + place.to(tl.int64) * 3 * HEIGHT * WIDTH + pixel
        tl.store(target, red, mask=real)
        tl.store(target + HEIGHT * WIDTH, green, mask=real)
        tl.store(target + 2 * HEIGHT * WIDTH, blue, mask=real)
    else:
        solarize = tl.load(row + 11)
        into = out + tl.program_id(0).to(tl.int64) * 3 * HEIGHT * WIDTH + pixel
        tl.store(into, _finish(red, 0, solarize, normal), mask=real)
        tl.store(into + HEIGHT * WIDTH, _finish(green, 1, solarize, normal), mask=real)
        tl.store(into + 2 * HEIGHT * WIDTH, _finish(blue, 2, solarize, normal), mask=real)


@triton.jit
def _blurred(
    base, sigma, place, STRIDE: tl.constexpr, SIZE: tl.constexpr, real, rest, RADIUS: tl.constexpr, PIXELS: tl.constexpr
):  # fmt: skip
    """The blur along one axis at `place` (PIXELS,) of it; `rest` (PIXELS,) is the offset by the other axis."""
    total = tl.zeros((PIXELS,), dtype=tl.float32)
    weights = 0.0
    for step in tl.static_range(-RADIUS, RADIUS + 1):
        weight = tl.exp(-0.5 * (step / sigma) * (step / sigma))
        at = tl.abs(place + step)
        at = tl.minimum(at, 2 * (SIZE - 1) - at)
        total += weight * tl.load(base + rest + at * STRIDE, mask=real, other=0.0)
        weights += weight
    return total / weights


@triton.jit
def _blur(
    x,
    chosen,
    table,
    normal,
    out,
    LAST: tl.constexpr,
    RADIUS: tl.constexpr,
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    NUMBERS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """Blur along the columns, or in the LAST pass along the rows and into the crop's place in the batch."""
    crop = tl.load(chosen + tl.program_id(0))
    row = table + crop * NUMBERS
    channel = tl.program_id(1)
    pixel = tl.program_id(2) * PIXELS + tl.arange(0, PIXELS)
    real = pixel < HEIGHT * WIDTH
    plane = (tl.program_id(0).to(tl.int64) * 3 + channel) * HEIGHT * WIDTH
    column = pixel % WIDTH
    if LAST:
        y = _blurred(x + plane, tl.load(row + 10), column, 1, WIDTH, real, pixel - column, RADIUS, PIXELS)
        tl.store(out + (crop * 3 + channel) * HEIGHT * WIDTH + pixel, _finish(y, channel, tl.load(row + 11), normal), mask=real)
    else:
        y = _blurred(x + plane, tl.load(row + 10), pixel // WIDTH, WIDTH, HEIGHT, real, column, RADIUS, PIXELS)
        tl.store(out + plane + pixel, y, mask=real)
