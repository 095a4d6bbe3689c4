"""Bytes to pixels, under limits: images come from outside."""

import io
import warnings

import numpy as np
import simplejpeg
import torch
from PIL import Image

from curation.errors import DataError

MAX_PIXELS = 100_000_000
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm"})


def decode(content: bytes) -> np.ndarray:
    """Decode one image to (H, W, 3) uint8 RGB. Raises DataError with a short reason if it cannot be."""
    if not content:
        raise DataError("empty file")
    if content[:2] == b"\xff\xd8":
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(content)
            if height * width > MAX_PIXELS:
                raise DataError(f"too large: {width} x {height} pixels")
            if colorspace not in ("CMYK", "YCCK"):
                return np.array(simplejpeg.decode_jpeg(content, colorspace="RGB"))
        except ValueError as error:
            raise DataError(f"corrupt JPEG: {error}") from None
    return _decode_with_pillow(content)


def _decode_with_pillow(content: bytes) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise DataError(f"too large: {image.width} x {image.height} pixels")
                if image.mode.startswith("I"):  # 16 bits a pixel: convert() would clip, not scale
                    wide = np.asarray(image, dtype=np.float64)
                    gray = (wide / 257).clip(0, 255).astype(np.uint8)
                    return np.repeat(gray[:, :, None], 3, axis=2)
                return np.array(image.convert("RGB"))
    except DataError:
        raise
    except Exception as error:  # Pillow's decoders raise a dozen types on bad data
        raise DataError(f"corrupt image: {type(error).__name__}") from None


def to_square(image: np.ndarray, size: int) -> torch.Tensor:
    """Scale the shorter side of (H, W, 3) uint8 to `size` and cut the centre: (3, size, size) uint8."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return crop_resize(image, top, left, side, side, size)


def crop_resize(image: np.ndarray, top: int, left: int, height: int, width: int, size: int) -> torch.Tensor:
    """Cut a box out of (H, W, 3) uint8 and scale it, antialiased and bilinear, to (3, size, size) uint8."""
    box = torch.from_numpy(image[top : top + height, left : left + width]).permute(2, 0, 1)[None]
    if (height, width) == (size, size):
        return box[0].contiguous()
    # The channels-last view keeps torch's vectorised uint8 path.
    return torch.nn.functional.interpolate(box, (size, size), mode="bilinear", antialias=True)[0].contiguous()
