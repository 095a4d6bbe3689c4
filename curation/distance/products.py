"""Scores of rows against centroids: the seam between exact labels and the arithmetic of a device."""

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

_SCORES = 2**20
"""Scores held at once: few enough to stay in the cache between the product and the search for the smallest."""


class Coarse(NamedTuple):
    """The two best scores of B rows, as a product that rounds gives them."""

    label: Tensor
    """(B,) int64: the centroid with the smallest score."""
    best: Tensor
    """(B,) float32: the score of that centroid: its squared distance up to a term that is the same for all centroids."""
    second: Tensor
    """(B,) float32: the score of the runner-up; infinite where there is a single centroid."""
    error: Tensor
    """(B,) float32: a bound on how much rounding changes any score of the row."""


class Products(Protocol):
    """A way to compute scores of rows (B, D) against fixed centroids."""

    block_rows: int
    """Number of rows to pass at once."""

    def nearest(self, rows: Tensor) -> Coarse:
        """The two best scores of each of `rows` (B, D)."""
        ...

    def candidates(self, rows: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs of a row and a centroid with a score up to the row's `limit` (B,).

        Returns indices into `rows` (P,) int64 and centroids (P,) int64.
        """
        ...


class FullProducts:
    """Scores in float32, computed by torch on any device."""

    def __init__(self, centroids: Tensor, origin: Tensor) -> None:
        self._origin = origin
        self._centroids = centroids - origin
        self._norms = (self._centroids * self._centroids).sum(1)
        self._doubled = -2 * self._centroids
        # A sum of D products rounds by at most D units of each product's magnitude (Higham, "Accuracy and Stability of
        # Numerical Algorithms", 2002, section 3.1), the centring of rows and centroids and the final sum by four more.
        self._unit = (centroids.shape[1] + 4) * 2.0**-24
        self._farthest = float(self._norms.max().sqrt())
        self.block_rows = min(4096, max(256, _SCORES // len(centroids)))

    def nearest(self, rows: Tensor) -> Coarse:
        centred = rows.float() - self._origin
        scores = self._scores(centred)
        # numpy's search for the smallest uses the processor's vectors, torch's does not.
        label = scores.argmin(1) if scores.is_cuda else torch.from_numpy(scores.numpy().argmin(1))
        best = scores.gather(1, label[:, None])[:, 0]
        scores.scatter_(1, label[:, None], torch.inf)
        error = (2 * torch.linalg.vector_norm(centred, dim=1) + self._farthest) * (self._unit * self._farthest)
        return Coarse(label, best, scores.amin(1), error)

    def candidates(self, rows: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        pairs = []
        for start in range(0, len(rows), self.block_rows):
            scores = self._scores(rows[start : start + self.block_rows].float() - self._origin)
            row, centroid = (scores <= limit[start : start + self.block_rows, None]).nonzero(as_tuple=True)
            pairs.append((row + start, centroid))
        row, centroid = (torch.cat(column) for column in zip(*pairs, strict=True))
        return row, centroid

    def squared(self, rows: Tensor) -> Tensor:
        """Squared distances (B, K) float32 of rows (B, D) to every centroid, rounded as the product rounds."""
        centred = rows.float() - self._origin
        return (self._scores(centred) + (centred * centred).sum(1, keepdim=True)).clamp_(min=0)

    def _scores(self, centred: Tensor) -> Tensor:
        """(B, K) float32: |c|² - 2 x·c for rows x and centroids c about the origin."""
        if centred.is_cuda or not torch.backends.mkldnn.is_available():
            return torch.addmm(self._norms, centred, self._doubled.T)
        # oneDNN's product: on AMD processors two to three times as fast as MKL's, which addmm uses, and never slower. Torch
        # offers it for compiled code; as a convolution one pixel wide it can be had too, but not from a single thread.
        return torch.ops.mkldnn._linear_pointwise(centred, self._doubled, self._norms, "none", [], "")
