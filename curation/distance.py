"""Nearest centroids: the product that clustering spends its time on."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_SCORES = 2**22
"""Scores held at once: so few that they stay in the cache between the product and the search for the smallest."""


class Nearest(NamedTuple):
    """For each of B rows."""

    label: Tensor
    """(B,) int64: the nearest centroid, the smaller index on a tie."""
    squared: Tensor
    """(B,) float32: the squared Euclidean distance to it."""
    margin: Tensor
    """(B,) float32: how much greater the squared distance to the second nearest is; infinite for a single centroid."""


class NearestCentroid:
    """Finds the nearest of `centroids` (K, D) float32 for rows (B, D) float32, both near the origin and on one device.

    Expanding |x - c|² to |x|² - 2 x·c + |c|² makes it one matrix product; the distance itself is then computed from the
    difference, so that nothing cancels.
    """

    def __init__(self, centroids: Tensor) -> None:
        self._centroids = centroids
        self._norms = (centroids * centroids).sum(1)
        self._weight = (-2 * centroids)[:, :, None, None].contiguous(memory_format=torch.channels_last)
        self.block_rows = min(4096, max(256, _SCORES // len(centroids)))
        """How many rows to pass at once."""

    def __call__(self, rows: Tensor) -> Nearest:
        scores = self._scores(rows)
        best, label = scores.min(1)
        scores.scatter_(1, label[:, None], torch.inf)
        away = rows - self._centroids[label]
        return Nearest(label, torch.linalg.vecdot(away, away), scores.amin(1) - best)

    def squared(self, rows: Tensor) -> Tensor:
        """The squared distance to every centroid: (B, K) float32."""
        return (self._scores(rows) + (rows * rows).sum(1, keepdim=True)).clamp_(min=0)

    def _scores(self, rows: Tensor) -> Tensor:
        """|c|² - 2 x·c: (B, K)."""
        if rows.is_cuda:
            return torch.addmm(self._norms, rows, self._centroids.T, alpha=-2)
        # The same product as a convolution one pixel wide: oneDNN then multiplies, at two to three times the rate of MKL's
        # matrix product on AMD processors and never slower.
        pixels = rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)
        return F.conv2d(pixels, self._weight, self._norms).permute(0, 2, 3, 1).view(len(rows), -1)


def default_device() -> torch.device:
    """The GPU this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def coarse_dtype(device: torch.device) -> torch.dtype:
    """The fastest type for products whose rounding does not matter: bfloat16 where the device multiplies it natively."""
    if device.type == "cuda":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
