"""Nearest centroids: the matrix product that clustering spends its time on, and the check that makes its labels exact.

Expanding |x - c|² to |x|² - 2 x·c + |c|² turns distances into one matrix product, computed in the fastest arithmetic of the
device. The product rounds, by no more than a known bound. Where the distances to the two nearest centroids of a row differ by
less than that, all centroids that may be nearest are compared in float64. So labels equal those of float64 arithmetic,
whatever arithmetic the product used.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from curation.base.threads import one_thread
from curation.distance.products import FullProducts, Products

_PAIRS = 2**22
"""Numbers of rows and centroids held at once when they are compared in float64."""

Engine = Literal["torch", "faiss"]
"""The library that computes products."""


class Nearest(NamedTuple):
    """The nearest centroid of each of B rows."""

    label: Tensor
    """(B,) int64: index of the nearest centroid, the smaller index on a tie."""
    margin: Tensor
    """(B,) float32: squared distance to the second nearest less that to the nearest; infinite for a single centroid."""


class NearestCentroid:
    """A search for the nearest of `centroids` (K, D) float32, for rows (B, D) of any floating type on the same device.

    Products are computed about `origin` (D,), which should lie in the middle of the rows so that little cancels. The `engine`,
    torch with our Triton kernels or faiss, does not change the labels.
    """

    def __init__(self, centroids: Tensor, origin: Tensor | None = None, *, engine: Engine = "torch") -> None:
        self._centroids = centroids
        origin = torch.zeros_like(centroids[0]) if origin is None else origin
        self._products = _products(centroids, origin, engine)
        self.block_rows = self._products.block_rows
        """Number of rows to pass at once."""

    def __call__(self, rows: Tensor) -> Nearest:
        coarse = self._products.nearest(rows)
        label, margin = coarse.label, coarse.second - coarse.best
        unsure = (~(margin > 2 * coarse.error)).nonzero()[:, 0]
        if len(unsure) and len(self._centroids) > 1:
            with one_thread():
                limit = coarse.best[unsure] + 2 * coarse.error[unsure]
                label[unsure], margin[unsure] = self._compare(rows[unsure], limit)
        return Nearest(label, margin)

    def _compare(self, rows: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Label and margin of `rows` (U, D) by float64 distances to the centroids whose scores are within `limit` (U,)."""
        row, centroid = self._products.candidates(rows, limit)
        squared = torch.cat(
            [
                (rows[i].double() - self._centroids[k].double()).square().sum(1)
                for i, k in zip(*(index.split(max(1, _PAIRS // rows.shape[1])) for index in (row, centroid)), strict=True)
            ]
        )
        infinite = torch.full((len(rows),), torch.inf, dtype=torch.float64, device=rows.device)
        best = infinite.scatter_reduce(0, row, squared, "amin")
        last = torch.full((len(rows),), len(self._centroids) - 1, device=rows.device)
        label = last.scatter_reduce(0, row, torch.where(squared == best[row], centroid, len(self._centroids)), "amin")
        others = torch.where(centroid == label[row], torch.inf, squared)
        return label, (infinite.scatter_reduce(0, row, others, "amin") - best).float()


def _products(centroids: Tensor, origin: Tensor, engine: Engine) -> Products:
    if engine == "faiss":
        from curation.distance.faiss_products import FaissProducts

        return FaissProducts(centroids, origin)
    if centroids.is_cuda:
        from curation.distance.kernels import HalfProducts

        return HalfProducts(centroids, origin)
    return FullProducts(centroids, origin)


def squared_distance(rows: Tensor, centroids: Tensor, label: Tensor) -> Tensor:
    """(B,) float32: squared distance from `rows` (B, D) to centroids `label` (B,), by the difference: nothing cancels."""
    difference = rows.float() - centroids[label]
    return torch.linalg.vecdot(difference, difference)


def coarse_dtype(device: torch.device) -> torch.dtype:
    """The fastest type for products whose rounding does not matter: bfloat16 where the device multiplies it natively."""
    if device.type == "cuda":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
