"""Cutting and scaling of boxes of images."""

import numpy as np
import torch


def to_square(image: np.ndarray, size: int) -> torch.Tensor:
    """Scale the shorter side of (H, W, 3) uint8 to `size` and cut the centre: (3, size, size) uint8."""
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return crop_resize(image, top, left, side, side, size)


def crop_resize(image: np.ndarray, top: int, left: int, height: int, width: int, size: int) -> torch.Tensor:
    """Cut a box out of (H, W, 3) uint8 and scale it, antialiased and bilinear, to (3, size, size) uint8."""
    out = np.empty((size, size, 3), dtype=np.uint8)
    crop_resize_into(out, image, top, left, height, width)
    return torch.from_numpy(out.transpose(2, 0, 1))


def crop_resize_into(out: np.ndarray, image: np.ndarray, top: int, left: int, height: int, width: int) -> None:
    """Cut a box out of (H, W, 3) uint8 and scale it, as `crop_resize` does, into `out` (S, S, 3) uint8."""
    box = image[top : top + height, left : left + width]
    if box.shape == out.shape:
        np.copyto(out, box)
        return
    # With channels last on both sides torch has vector code, and copies nothing. Views are numpy's: torch's release the
    # interpreter lock and take it again, for which threads wait on one another.
    wide, small = (torch.from_numpy(part.transpose(2, 0, 1)[None]) for part in (box, out))
    torch.ops.aten._upsample_bilinear2d_aa.out(wide, out.shape[:2], False, None, None, out=small)
