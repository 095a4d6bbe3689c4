"""Views of a sample: place and colour changes of each crop, drawn per sample and applied per batch.

Geometry differs from image to image and runs on decoded uint8 arrays in worker processes of the loader. Colour runs on whole
batches of crops, on the device. The distributions are those of torchvision's RandomResizedCrop, RandomHorizontalFlip,
ColorJitter, RandomGrayscale, GaussianBlur and RandomSolarize.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.base.errors import DataError
from trainers.data.colour import ORDERS, Changes, recolour
from trainers.data.config import ViewsConfig
from trainers.data.decoding import decode_window, size_of
from trainers.data.resize import crop_resize_into

_TRIES = 10
_PLACE = 2 * _TRIES
_COLOUR = _PLACE + 2
_NUMBERS = _COLOUR + 11
_RATIO = (3 / 4, 4 / 3)
_SIGMA = (0.1, 2.0)
_REDUCTIONS = np.array([1, 2, 4, 8])
_OVERSAMPLING = 1.25
"""Smallest ratio of the pixels of a JPEG that is decoded smaller to those of its crop, in each direction. The crop then differs
from one cut from the whole image by less than bilinear scaling differs from bicubic; at 1.0 it would differ twice as much."""


@dataclass(frozen=True)
class Draws:
    """The random draws for all views of B samples: V views, the global crops first, then the local ones."""

    numbers: np.ndarray
    """(B, V, _NUMBERS) float64 in [0, 1): tries of area and ratio, place, colour."""
    sides: np.ndarray
    """(B, V, _TRIES, 2) float64: tries of a box, its height and width where the image has an area of 1."""

    @staticmethod
    def shapes(num_views: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of `numbers` and `sides` for one sample."""
        return (num_views, _NUMBERS), (num_views, _TRIES, 2)

    @classmethod
    def of(cls, config: ViewsConfig, samples: np.ndarray, *, rng_key: int) -> "Draws":
        """The draws of `samples` (B,), each a position in the endless stream of shown samples."""
        scales = np.array([config.global_scale] * config.num_global + [config.local_scale] * config.num_local)
        rows = (samples[:, None] * len(scales) + np.arange(len(scales))).ravel()
        numbers = rng.uniform(rng_key, rows, _NUMBERS).reshape(len(samples), len(scales), _NUMBERS)
        share, ratio = np.moveaxis(numbers[..., :_PLACE].reshape(len(samples), len(scales), _TRIES, 2), 3, 0)
        low, high = scales[:, :1], scales[:, 1:]
        height = np.sqrt(low + share * (high - low))
        stretch = np.exp(0.5 * (math.log(_RATIO[0]) + ratio * math.log(_RATIO[1] / _RATIO[0])))
        return cls(numbers, np.stack([height / stretch, height * stretch], axis=3))

    def boxes(self, samples: int | slice | np.ndarray, height: int | np.ndarray, width: int | np.ndarray) -> np.ndarray:
        """The crop boxes (V, 4) int64 of one sample, an image of `height` and `width`, as top, left, height, width.

        Several samples give (B, V, 4); `height` and `width` are then one number for all, or (B,).

        A box covers a uniform share of the area at a log-uniform aspect ratio; the first of ten tries that fits counts, else
        the largest centred box within the ratio's range.
        """
        whole = np.stack([height, width], axis=-1)[..., None, :]
        tries = np.rint(self.sides[samples] * np.sqrt(whole.prod(axis=-1))[..., None, None])
        fits = ((tries > 0) & (tries <= whole[..., None, :])).all(axis=-1)
        first = fits.argmax(axis=-1)
        first_fitting = tries.reshape(-1, _TRIES, 2)[np.arange(first.size), first.ravel()].reshape(*first.shape, 2)
        fit = fits.any(axis=-1, keepdims=True)
        largest = np.minimum(whole, np.rint(whole[..., ::-1] * _RATIO[1]))
        size = np.where(fit, first_fitting, largest)
        place = self.numbers[samples, :, _PLACE:_COLOUR]
        corner = np.where(fit, np.floor(place * (whole - size + 1)), (whole - size) // 2)
        return np.concatenate([corner, size], axis=-1).astype(np.int64)

    def changes(self, config: ViewsConfig, first_view: int, num_views: int) -> Changes:
        """The colour changes of `num_views` views from `first_view` on: V' B of them, view first."""
        u = self.numbers[:, first_view : first_view + num_views, _COLOUR:].transpose(1, 0, 2)
        # The chance of blur and solarisation differs between the first global, the second global and the local views.
        view = np.arange(first_view, first_view + num_views)
        kind = np.where(view < config.num_global, np.minimum(view, 1), 2)
        blur, solarize = (np.array(chances)[kind, None] for chances in (config.blur, config.solarize))
        reach = np.array([config.brightness, config.contrast, config.saturation, config.hue])
        order = np.where(u[..., 1] < config.jitter, np.floor(u[..., 10] * len(ORDERS)), -1)
        return Changes(
            flip=(u[..., 0] < config.flip).ravel(),
            order=order.astype(np.int64).ravel(),
            jitter=((2 * u[..., 2:6] - 1) * reach + (1, 1, 1, 0)).astype(np.float32).reshape(-1, 4),
            gray=(u[..., 6] < config.grayscale).ravel(),
            sigma=np.where(u[..., 7] < blur, _SIGMA[0] + u[..., 8] * (_SIGMA[1] - _SIGMA[0]), 0).astype(np.float32).ravel(),
            solarize=(u[..., 9] < solarize).ravel(),
        )


def cut(contents: Mapping[int, bytes], draws: Draws, crops: Mapping[int, Sequence[np.ndarray]]) -> dict[int, DataError]:
    """Decode the images of some samples and cut the views of each into its `crops`, V arrays (S, S, 3) uint8 of one size S.

    Returns the errors of those that cannot be decoded, by sample.
    """
    bad, sizes = dict[int, DataError](), dict[int, tuple[int, int]]()
    for sample, content in contents.items():
        try:
            sizes[sample] = size_of(content)
        except DataError as error:
            bad[sample] = error
    if not sizes:
        return bad
    # For all samples at once: decoding evicts the code of these many small operations from the processor's caches, so that
    # they took 5 % of the time of an image when they came after each one.
    samples, whole = np.array(list(sizes)), np.array(list(sizes.values()))
    boxes = draws.boxes(samples, *whole.T)
    pixels = [len(crop) for crop in crops[samples[0]]]
    ratio = (boxes[..., 2:].min(axis=-1) / pixels).min(axis=-1) / _OVERSAMPLING
    reductions = _REDUCTIONS[np.searchsorted(_REDUCTIONS[1:], ratio, side="right")].tolist()
    corners = boxes[..., :2].min(axis=1)
    windows = np.concatenate([corners, (boxes[..., :2] + boxes[..., 2:]).max(axis=1) - corners], axis=1).tolist()
    for number, sample in enumerate(sizes):
        try:
            image, top, left, reduction = decode_window(contents[sample], tuple(windows[number]), reductions[number])
        except DataError as error:
            bad[sample] = error
            continue
        sample_boxes = boxes[number]
        if reduction > 1:
            edges = np.concatenate([sample_boxes[:, :2], sample_boxes[:, :2] + sample_boxes[:, 2:]], axis=1)
            smaller = np.ceil(whole[number] / reduction) / whole[number]
            edges = np.rint(edges * np.tile(smaller, 2)).astype(np.int64)
            sample_boxes = np.concatenate([edges[:, :2], edges[:, 2:] - edges[:, :2]], axis=1)
        for box, crop in zip((sample_boxes - (top, left, 0, 0)).tolist(), crops[sample], strict=True):
            crop_resize_into(crop, image, *box)
    return bad


def colour(
    config: ViewsConfig,
    batch: Tensor,
    draws: Draws,
    first_view: int,
    mean: Sequence[float] = (0, 0, 0),
    std: Sequence[float] = (1, 1, 1),
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Flip, recolour and normalise views `first_view` onwards, a `batch` (V', B, 3, S, S) uint8: the same shape in `dtype`."""
    changes = draws.changes(config, first_view, len(batch))
    if batch.device.type == "cuda":
        from trainers.data import colour_kernels as kernels

        return kernels.recolour(batch.flatten(0, 1), changes, mean, std, dtype).view(batch.shape)
    return recolour(batch.flatten(0, 1), changes, mean, std).to(dtype).view(batch.shape)
