"""Bytes to pixels, under limits: images come from outside."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from curation.base.errors import DataError
from trainers.data.jpeg import region

MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def is_jpeg(content: bytes) -> bool:
    """Whether these bytes begin as those of a JPEG do."""
    return content[:2] == b"\xff\xd8"


def size_of(content: bytes) -> tuple[int, int]:
    """Height and width, from the header alone. Raises DataError with a short reason if it cannot be read, or is too large."""
    if size := _turbo_size(content):
        return size
    with _opened_by_pillow(content) as image:
        return image.height, image.width


class _PixelBuffer(threading.local):
    """Memory for one decoded image per thread: new memory of this size would come from the system, page by page, each time."""

    def __init__(self) -> None:
        self.pixels = np.empty(2**25, dtype=np.uint8)


_buffer = _PixelBuffer()


def decode(content: bytes) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8 RGB. Raises DataError with a short reason if it cannot be."""
    size = _turbo_size(content)
    return _decode_jpeg(content, *size) if size else _decode_with_pillow(content)


class Window(NamedTuple):
    """The decoded region of an image."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB; overwritten when this thread decodes another window."""
    top: int
    """Place in the whole image, on the scale of `pixels`."""
    left: int
    reduction: int
    """Factor by which it is smaller than in the file, rounded up."""


def decode_window(content: bytes, box: tuple[int, int, int, int], reduction: int) -> Window:
    """Decode at least `box` (top, left, height, width) of one image. Raises DataError with a short reason if it cannot be.

    A JPEG is decoded `reduction` (1, 2, 4 or 8) times smaller, which skips most of the work after the entropy coding. Where
    restart markers allow it, what is far from the box is skipped, and damage there is not noticed. Other formats are decoded
    whole.
    """
    size = _turbo_size(content)
    if not size:
        return Window(_decode_with_pillow(content), 0, 0, 1)
    # A decoder smooths subsampled colours, which takes neighbours, unless there are no more than two columns of them.
    border = 4 * reduction
    top, left, height, width = box
    above, beside = min(top, border), min(left, border)
    smaller = region(content, (top - above, left - beside, above + height + border, beside + width + border))
    content, top, left, height, width = smaller or (content, 0, 0, *size)  # type: ignore[assignment]
    pixels = _decode_jpeg(content, height, width, reduction, _buffer.pixels)
    return Window(pixels, top // reduction, left // reduction, reduction)


def _decode_jpeg(
    content: bytes | bytearray, height: int, width: int, reduction: int = 1, buffer: np.ndarray | None = None
) -> np.ndarray:
    """Decode to (H, W, 3) uint8, into `buffer` if it is large enough."""
    # The decoder takes the smallest of its scales that gives at least these sides.
    sides = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
    if buffer is not None and 3 * height * width > buffer.nbytes:
        buffer = None
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=buffer, **sides))
    except ValueError as error:
        raise DataError(f"corrupt JPEG: {error}") from None


def _turbo_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that libjpeg-turbo decodes to RGB; None for anything else, which Pillow decodes."""
    if not content:
        raise DataError("empty file")
    if not is_jpeg(content):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except KeyError:  # a sampling of colours that simplejpeg has no name for
        return None
    except ValueError as error:
        if "subsampling" in str(error):  # a sampling that libjpeg-turbo does not know
            return None
        raise DataError(f"corrupt JPEG: {error}") from None
    _check_size(height, width)
    return None if colorspace in ("CMYK", "YCCK") else (height, width)


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(f"too large: {width} x {height} pixels")


@contextmanager
def _opened_by_pillow(content: bytes) -> Iterator[Image.Image]:
    """Open an image, its size checked. Raises DataError with a short reason for any failure while it is open."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                _check_size(image.height, image.width)
                yield image
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on bad data
        raise DataError(f"corrupt {'JPEG' if is_jpeg(content) else 'image'}: {type(error).__name__}") from None


def _decode_with_pillow(content: bytes) -> np.ndarray:
    with _opened_by_pillow(content) as image:
        if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip, not scale
            wide = np.asarray(image, dtype=np.float64)
            gray = (wide / 257).clip(0, 255).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))
