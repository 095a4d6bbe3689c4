"""Views of a sample: where each crop is cut and how its colours change, drawn per sample and applied per batch.

Geometry differs from image to image and runs on decoded uint8 arrays in the loader's threads; colour runs on whole batches
of crops, on the device. The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter
(in one fixed order), RandomGrayscale, GaussianBlur and RandomSolarize.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from curation import rng
from trainers.config import ViewsConfig
from trainers.images import crop_resize

_TRIES = 10
_NUMBERS = 2 * _TRIES + 2 + 10
_RATIO = (3 / 4, 4 / 3)
_GRAY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Draws:
    """Uniform numbers (B, V, _NUMBERS) that decide every view of B samples: two global crops first, then the local ones."""

    numbers: np.ndarray

    @classmethod
    def of(cls, config: ViewsConfig, samples: np.ndarray, *, stream: int) -> "Draws":
        """The draws of `samples` (B,), each a position in the endless stream of shown samples."""
        num_views = 2 + config.num_local
        rows = (samples[:, None] * num_views + np.arange(num_views)).ravel()
        return cls(rng.uniform(stream, rows, _NUMBERS).reshape(len(samples), num_views, _NUMBERS))


def boxes(config: ViewsConfig, numbers: np.ndarray, height: int, width: int) -> np.ndarray:
    """Crop boxes (V, 4) int64 as top, left, height, width, for one image and its `numbers` (V, _NUMBERS).

    A box covers a uniform share of the area at a log-uniform aspect ratio; the first of ten tries that fits counts, else
    the largest centred box within the ratio's range.
    """
    num_views = len(numbers)
    scales = np.array([config.global_scale] * 2 + [config.local_scale] * (num_views - 2))
    tries = numbers[:, : 2 * _TRIES].reshape(num_views, _TRIES, 2)
    area = height * width * (scales[:, :1] + tries[:, :, 0] * (scales[:, 1:] - scales[:, :1]))
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = np.exp(low + tries[:, :, 1] * (high - low))
    widths = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    heights = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(axis=1)
    view = np.arange(num_views)
    w = np.where(fits[view, first], widths[view, first], min(width, round(height * _RATIO[1])))
    h = np.where(fits[view, first], heights[view, first], min(height, round(width / _RATIO[0])))
    place = numbers[:, 2 * _TRIES : 2 * _TRIES + 2]
    top = np.where(fits.any(axis=1), np.floor(place[:, 0] * (height - h + 1)), (height - h) // 2)
    left = np.where(fits.any(axis=1), np.floor(place[:, 1] * (width - w + 1)), (width - w) // 2)
    return np.stack([top, left, h, w], axis=1).astype(np.int64)


def crops(config: ViewsConfig, image: np.ndarray, numbers: np.ndarray) -> tuple[Tensor, Tensor]:
    """Cut all views of one image (H, W, 3) uint8: globals (2, 3, G, G) and locals (n, 3, L, L), uint8."""
    sizes = [config.global_size] * 2 + [config.local_size] * config.num_local
    cut = [
        crop_resize(image, int(box[0]), int(box[1]), int(box[2]), int(box[3]), size)
        for box, size in zip(boxes(config, numbers, *image.shape[:2]), sizes, strict=True)
    ]
    none = torch.empty(0, 3, config.local_size, config.local_size, dtype=torch.uint8)
    return torch.stack(cut[:2]), torch.stack(cut[2:]) if config.num_local else none


def colour(config: ViewsConfig, batch: Tensor, draws: Draws, first_view: int) -> Tensor:
    """Flip and recolour `batch` (V', B, 3, S, S) uint8, views `first_view` onwards: (V', B, 3, S, S) float32 in [0, 1]."""
    num_views, num_samples = batch.shape[:2]
    numbers = draws.numbers[:, first_view : first_view + num_views].transpose(1, 0, 2).reshape(-1, _NUMBERS)
    u = torch.from_numpy(numbers[:, 2 * _TRIES + 2 :].astype(np.float32)).to(batch.device)
    # The chance of blur and solarisation differs between the first global, the second global and the local views.
    kind = torch.tensor([min(view, 2) for view in range(first_view, first_view + num_views)], device=batch.device)
    kind = kind.repeat_interleave(num_samples)
    images = batch.flatten(0, 1).float() / 255

    images = torch.where(_mask(u[:, 0] < config.flip), images.flip(3), images)
    chosen = (u[:, 1] < config.jitter).nonzero()[:, 0]
    if len(chosen):
        strengths = torch.tensor([config.brightness, config.contrast, config.saturation, config.hue], device=batch.device)
        amount = (2 * u[chosen, 2:6] - 1) * strengths
        images[chosen] = _jitter(images[chosen], amount)
    images = torch.where(_mask(u[:, 6] < config.grayscale), _grayscale(images).expand_as(images), images)
    chosen = (u[:, 7] < torch.tensor(config.blur, device=batch.device)[kind]).nonzero()[:, 0]
    if len(chosen):
        images[chosen] = _blur(images[chosen], 0.1 + 1.9 * u[chosen, 8])
    solarized = u[:, 9] < torch.tensor(config.solarize, device=batch.device)[kind]
    images = torch.where(_mask(solarized) & (images >= 0.5), 1 - images, images)
    return images.unflatten(0, (num_views, num_samples))


def _mask(chosen: Tensor) -> Tensor:
    return chosen[:, None, None, None]


def _grayscale(images: Tensor) -> Tensor:
    return (images * images.new_tensor(_GRAY)[:, None, None]).sum(1, keepdim=True)


def _jitter(images: Tensor, amount: Tensor) -> Tensor:
    """Change brightness, contrast, saturation and hue of (N, 3, S, S) by `amount` (N, 4), each 0 for no change."""
    brightness, contrast, saturation, hue = (amount[:, i, None, None, None] for i in range(4))
    images = (images * (1 + brightness)).clamp(0, 1)
    mean = _grayscale(images).mean((1, 2, 3), keepdim=True)
    images = (mean + (images - mean) * (1 + contrast)).clamp(0, 1)
    gray = _grayscale(images)
    images = (gray + (images - gray) * (1 + saturation)).clamp(0, 1)
    return _turn_hue(images, hue)


def _turn_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Rotate the hue of (N, 3, S, S) by `turn` (N, 1, 1, 1) of a full circle, through HSV."""
    value, largest = images.max(1, keepdim=True)
    chroma = value - images.min(1, keepdim=True).values
    red, green, blue = images.split(1, dim=1)
    safe = chroma.clamp_min(1e-8)
    sector = torch.where(
        largest == 0, (green - blue) / safe, torch.where(largest == 1, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    sector = sector + 6 * turn
    channels = []
    for shift in (5, 3, 1):
        k = (sector + shift) % 6
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.cat(channels, dim=1)


def _blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of (N, 3, S, S), each image with its own `sigma` (N,) in pixels."""
    num, channels, size, _ = images.shape
    radius = min(6, size - 1)  # three of the largest sigma
    distance = torch.arange(-radius, radius + 1, device=images.device)
    kernel = torch.softmax(-(distance**2) / (2 * sigma[:, None] ** 2), dim=1).repeat_interleave(channels, 0)
    rows = F.pad(images.reshape(1, num * channels, size, size), (radius,) * 4, mode="reflect")
    rows = F.conv2d(rows, kernel[:, None, :, None], groups=num * channels)
    return F.conv2d(rows, kernel[:, None, None, :], groups=num * channels).view(num, channels, size, size)
