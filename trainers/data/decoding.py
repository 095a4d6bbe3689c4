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
from trainers.data.jpeg import part

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


class _Room(threading.local):
    """Memory of this thread's own: fresh memory of this size would come from the system, page by page, for every image."""

    def __init__(self) -> None:
        self.pixels = np.empty(2**25, dtype=np.uint8)


_room = _Room()


def decode(content: bytes) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8 RGB. Raises DataError with a short reason if it cannot be."""
    size = _turbo_size(content)
    return _decode_jpeg(content, *size) if size else _decode_with_pillow(content)


class Window(NamedTuple):
    """What was decoded of an image."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB; there until this thread decodes another."""
    top: int
    """In the whole image, on the same scale, as is the following."""
    left: int
    reduction: int
    """How many times smaller it is than in the file, rounded up."""


def decode_window(content: bytes, box: tuple[int, int, int, int], reduction: int) -> Window:
    """Decode at least `box` (top, left, height, width) of one image. Raises DataError with a short reason if it cannot be.

    A JPEG comes out `reduction` (1, 2, 4 or 8) times smaller, which skips most of the work after the entropy coding, and if
    restart markers allow it without what is far from the box, which skips all work on that, and damage to it is not told. Other
    formats come out whole.
    """
    size = _turbo_size(content)
    if not size:
        return Window(_decode_with_pillow(content), 0, 0, 1)
    # A decoder smooths colours of a lower resolution, which takes neighbours, unless it has no more than two columns of them.
    border = 4 * reduction
    top, left, height, width = box
    above, beside = min(top, border), min(left, border)
    found = part(content, (top - above, left - beside, above + height + border, beside + width + border))
    least, top, left, height, width = found or (content, 0, 0, *size)
    pixels = _decode_jpeg(least, height, width, reduction, _room.pixels)
    return Window(pixels, top // reduction, left // reduction, reduction)


def _decode_jpeg(
    content: bytes | bytearray, height: int, width: int, reduction: int = 1, room: np.ndarray | None = None
) -> np.ndarray:
    """To (H, W, 3) uint8, in `room` if it is large enough."""
    # The decoder takes the smallest of its scales that gives at least these sides.
    least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
    if room is not None and 3 * height * width > room.nbytes:
        room = None
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=room, **least))
    except ValueError as error:
        raise DataError(f"corrupt JPEG: {error}") from None


def _turbo_size(content: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG that libjpeg-turbo takes to RGB. None: what else this may be, it is for Pillow."""
    if not content:
        raise DataError("empty file")
    if not is_jpeg(content):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except KeyError:  # a sampling of colours that simplejpeg has no name for
        return None
    except ValueError as error:
        if "subsampling" in str(error):  # one that libjpeg-turbo has none for
            return None
        raise DataError(f"corrupt JPEG: {error}") from None
    _check_size(height, width)
    return None if colorspace in ("CMYK", "YCCK") else (height, width)


def _check_size(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(f"too large: {width} x {height} pixels")


@contextmanager
def _opened_by_pillow(content: bytes) -> Iterator[Image.Image]:
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
