"""Nearest centroids: the product that clustering spends its time on, and the check that makes its labels exact.

Expanding |x - c|² to |x|² - 2 x·c + |c|² turns distances into one matrix product, taken in the fastest arithmetic of the
device. It rounds, but by no more than a known bound. Where the two nearest centroids of a row are closer to one another than
that, the few that may be nearest are compared in float64. So labels are those of float64, whatever the product was taken in.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from curation.base.threads import one_thread

_SCORES = 2**20
"""Scores held at once: so few that they stay in the cache between the product and the search for the smallest."""
_PAIRS = 2**22
"""Numbers of rows and centroids held at once when they are compared in float64."""


class Nearest(NamedTuple):
    """For each of B rows."""

    label: Tensor
    """(B,) int64: the nearest centroid, the smaller index on a tie."""
    margin: Tensor
    """(B,) float32: how much greater the squared distance to the second nearest is; infinite for a single centroid."""


class Coarse(NamedTuple):
    """What a product that rounds says of B rows."""

    label: Tensor
    """(B,) int64."""
    best: Tensor
    """(B,) float32: the score of that centroid, its squared distance up to something that is the same for all centroids."""
    second: Tensor
    """(B,) float32: the score of the runner-up."""
    error: Tensor
    """(B,) float32: what rounding changes any score of the row by at the most."""


class Products(Protocol):
    """A way to compute scores, the seam between exact labels and the arithmetic of a device."""

    block_rows: int
    """How many rows to pass at once."""

    def nearest(self, rows: Tensor) -> Coarse: ...

    def candidates(self, rows: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        """Which centroids have scores up to `limit` (B,): places in `rows` (P,) and centroids (P,), int64."""
        ...


Engine = Literal["torch", "faiss"]


class NearestCentroid:
    """Finds the nearest of `centroids` (K, D) float32 for rows (B, D) of any floating type on the same device.

    Products are taken about `origin` (D,), which should lie amid the rows so that little cancels, by torch and our kernels or
    by faiss; labels are the same.
    """

    def __init__(self, centroids: Tensor, origin: Tensor | None = None, *, engine: Engine = "torch") -> None:
        self._centroids = centroids
        origin = torch.zeros_like(centroids[0]) if origin is None else origin
        self._products = _products(centroids, origin, engine)
        self.block_rows = self._products.block_rows
        """How many rows to pass at once."""

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
        """Label and margin of `rows` (U, D) by the float64 distances of the centroids whose scores are within `limit` (U,)."""
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


class FullProducts:
    """Scores in float32, by torch; on any device."""

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
        found = []
        for start in range(0, len(rows), self.block_rows):
            near = self._scores(rows[start : start + self.block_rows].float() - self._origin)
            row, centroid = (near <= limit[start : start + self.block_rows, None]).nonzero(as_tuple=True)
            found.append((row + start, centroid))
        row, centroid = (torch.cat(column) for column in zip(*found, strict=True))
        return row, centroid

    def squared(self, rows: Tensor) -> Tensor:
        """The squared distance to every centroid: (B, K) float32, as far as it rounds."""
        centred = rows.float() - self._origin
        return (self._scores(centred) + (centred * centred).sum(1, keepdim=True)).clamp_(min=0)

    def _scores(self, centred: Tensor) -> Tensor:
        """|c|² - 2 x·c: (B, K)."""
        if centred.is_cuda or not torch.backends.mkldnn.is_available():
            return torch.addmm(self._norms, centred, self._doubled.T)
        # oneDNN's product: on AMD processors two to three times as fast as MKL's, which addmm uses, and never slower. Torch
        # offers it for compiled code; as a convolution one pixel wide it can be had too, but not from a single thread.
        return torch.ops.mkldnn._linear_pointwise(centred, self._doubled, self._norms, "none", [], "")


def squared_distance(rows: Tensor, centroids: Tensor, label: Tensor) -> Tensor:
    """(B,) float32: of each of `rows` (B, D) to centroid `label` (B,), from the difference, so that nothing cancels."""
    away = rows.float() - centroids[label]
    return torch.linalg.vecdot(away, away)


def default_device() -> torch.device:
    """The GPU this process was given, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def coarse_dtype(device: torch.device) -> torch.dtype:
    """The fastest type for products whose rounding does not matter: bfloat16 where the device multiplies it natively."""
    if device.type == "cuda":
        return torch.bfloat16
    native = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if native() else torch.float32
