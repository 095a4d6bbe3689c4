"""Bytes to pixels, under limits: images come from outside."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import Image

from curation.errors import DataError

MAX_PIXELS = 100_000_000
_JPEG = b"\xff\xd8"
_SEQUENTIAL = (0xC0, 0xC1)
"""Markers of the segment of a sequential JPEG that has its height."""
_TABLES = (0xC4, 0xCC, *range(0xDB, 0xFF))
"""Markers of segments that may stand before it."""
_LEAST_SPARED = 16
"""Rows: fewer are not worth a copy."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def size_of(content: bytes) -> tuple[int, int]:
    """Height and width, from the header alone. Raises DataError with a short reason if it cannot be read, or is too large."""
    if not content:
        raise DataError("empty file")
    if content[:2] == _JPEG:
        return _jpeg_header(content)[:2]
    with _opened_by_pillow(content) as image:
        return image.height, image.width


class _Room(threading.local):
    """Memory of this thread's own: fresh memory of this size would come from the system, page by page, for every image."""

    def __init__(self) -> None:
        self.pixels = np.empty(2**25, dtype=np.uint8)


_room = _Room()


def decode(content: bytes, reduction: int = 1, *, rows: int | None = None, lasting: bool = True) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8 RGB. Raises DataError with a short reason if it cannot be.

    A JPEG comes out `reduction` (1, 2, 4 or 8) times smaller, rounded up, which skips most of the work after the entropy
    coding. If only the uppermost `rows` of the whole image are wanted, it may end a row of the result below them, or later,
    which skips all work on the rest; damage is then told only if the decoder cannot go on. Other formats come out whole. An
    image that is not `lasting` is there until this thread decodes another such.
    """
    if not content:
        raise DataError("empty file")
    if content[:2] != _JPEG:
        return _decode_with_pillow(content)
    height, width, colorspace = _jpeg_header(content)
    if colorspace in ("CMYK", "YCCK"):
        return _decode_with_pillow(content)
    strict, wanted = True, height if rows is None else rows + 2 * reduction  # the last row's colour and scaling take more
    if wanted + _LEAST_SPARED <= height and (short := _ending_at(wanted, content, height)):
        content, height, strict = short, wanted, False
    # The decoder takes the smallest of its scales that gives at least these sides.
    least = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)} if reduction > 1 else {}
    room = None if lasting or 3 * height * width > _room.pixels.nbytes else _room.pixels
    try:
        return np.asarray(simplejpeg.decode_jpeg(content, colorspace="RGB", buffer=room, strict=strict, **least))
    except ValueError as error:
        raise DataError(f"corrupt JPEG: {error}") from None


def _ending_at(rows: int, content: bytes, height: int) -> bytes | None:
    """The JPEG with `rows` for a height, if its coding is sequential: the decoder stops there and warns of what it has left."""
    place = 2
    while place + 7 <= len(content) and content[place] == 0xFF:
        kind = content[place + 1]
        if kind in _SEQUENTIAL and content[place + 5 : place + 7] == height.to_bytes(2):
            return content[: place + 5] + rows.to_bytes(2) + content[place + 7 :]
        if kind not in _TABLES:
            return None
        place += 2 + int.from_bytes(content[place + 2 : place + 4])
    return None


def _jpeg_header(content: bytes) -> tuple[int, int, str]:
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
