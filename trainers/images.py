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

from curation.errors import DataError
from trainers.jpeg import part

MAX_PIXELS = 100_000_000
_FOR_PILLOW = ("CMYK", "YCCK")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def is_jpeg(content: bytes) -> bool:
    """Whether these bytes begin as those of a JPEG do."""
    return content[:2] == b"\xff\xd8"


def size_of(content: bytes) -> tuple[int, int]:
    """Height and width, from the header alone. Raises DataError with a short reason if it cannot be read, or is too large."""
    if not content:
        raise DataError("empty file")
    if is_jpeg(content):
        return _jpeg_header(content)[:2]
    with _opened_by_pillow(content) as image:
        return image.height, image.width


class _Room(threading.local):
    """Memory of this thread's own: fresh memory of this size would come from the system, page by page, for every image."""

    def __init__(self) -> None:
        self.pixels = np.empty(2**25, dtype=np.uint8)


_room = _Room()


def decode(content: bytes) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8 RGB. Raises DataError with a short reason if it cannot be."""
    if not content:
        raise DataError("empty file")
    if is_jpeg(content) and _jpeg_header(content)[2] not in _FOR_PILLOW:
        return _decode_jpeg(content)
    return _decode_with_pillow(content)


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
    restart markers allow it without what is far from the box, which skips all work on that. Other formats come out whole.
    """
    if not is_jpeg(content) or _jpeg_header(content)[2] in _FOR_PILLOW:
        return Window(decode(content), 0, 0, 1)
    # Colours of a lower resolution are smoothed, which takes their neighbours; but not in an image of two columns of them.
    border = 4 * reduction
    top, left, height, width = box
    above, beside = min(top, border), min(left, border)
    found = part(content, (top - above, left - beside, above + height + border, beside + width + border))
    least, top, left = found or (content, 0, 0)
    return Window(_decode_jpeg(least, reduction, _room.pixels), top // reduction, left // reduction, reduction)


def _decode_jpeg(content: bytes | bytearray, reduction: int = 1, room: np.ndarray | None = None) -> np.ndarray:
    """To (H, W, 3) uint8, in `room` if it is large enough."""
    height, width, _ = _jpeg_header(content)
    # The decoder takes the smallest of its scales that gives at least these sides.
    least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
    if room is not None and 3 * height * width > room.nbytes:
        room = None
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=room, **least))
    except ValueError as error:
        raise DataError(f"corrupt JPEG: {error}") from None


def _jpeg_header(content: bytes | bytearray) -> tuple[int, int, str]:
    """Height, width and colour space."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError as error:
        raise DataError(f"corrupt JPEG: {error}") from None
    _check_size(height, width)
    return height, width, colorspace


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
        raise DataError(f"corrupt image: {type(error).__name__}") from None


def _decode_with_pillow(content: bytes) -> np.ndarray:
    with _opened_by_pillow(content) as image:
        if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip, not scale
            wide = np.asarray(image, dtype=np.float64)
            gray = (wide / 257).clip(0, 255).astype(np.uint8)
            return np.repeat(gray[:, :, None], 3, axis=2)
        return np.array(image.convert("RGB"))
