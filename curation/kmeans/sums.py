"""One pass of k-means over the rows: their nearest centroids, and exact sums of the rows of each cluster.

Every term is rounded to a grid so coarse that float64 adds up the terms without rounding. So sums are the same, bit for bit,
on any number of workers and for any division into blocks, and a row that changes its cluster can be subtracted from one sum
and added to another without a trace: apart from the search, a pass costs only what the rows that move cost.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from curation.base.errors import DataError
from curation.base.threads import one_thread
from curation.distance.exact import Grid
from curation.distance.nearest import Engine, NearestCentroid, squared_distance
from curation.kmeans.rows import NOT_FINITE, RowBlock, WorkerRows


@dataclass(frozen=True)
class Extent:
    """Where the rows lie and how far they reach: an origin for distances, and grids on which sums are exact."""

    origin: Tensor
    """(D,) float32, on the CPU."""
    rows: Grid
    squares: Grid
    weights: Grid

    @classmethod
    def of(cls, sample: np.ndarray, weights: np.ndarray | None, num_rows: int) -> "Extent":
        """The extent of `num_rows` rows, estimated from a sample (M, D) and its weights (M,).

        The origin is the mean of the sample, because expanded distances cancel badly far from the origin.
        """
        origin = sample.mean(axis=0, dtype=np.float64).astype(np.float32)
        weight = 1.0 if weights is None else float(weights.max())
        farthest = 4 * float(((sample - origin) ** 2).sum(1).max())
        return cls(
            torch.from_numpy(origin),
            Grid(float(np.abs(sample).max()) * weight, num_rows),
            Grid(farthest * weight, num_rows),
            Grid(weight, num_rows),
        )


class ClusterSums:
    """Labels of one worker's rows, and sums of its rows by label, both kept up to date from pass to pass."""

    def __init__(self, rows: WorkerRows, num_clusters: int, extent: Extent) -> None:
        num, device = rows.source.num_rows, rows.device
        self.label = torch.full((num,), -1, dtype=torch.int32, device=device)
        """(N,) int32; -1 before the first pass."""
        self.of_rows = torch.zeros(num_clusters, rows.source.dim, dtype=torch.float64, device=device)
        """(K, D) float64: weighted sum of the rows of each cluster."""
        self.of_squares = torch.zeros((), dtype=torch.float64, device=device)
        """Weighted sum of the squared distances of all rows to the origin."""
        self._extent = extent
        self._first_pass = True

    def update(self, block: RowBlock, label: Tensor) -> None:
        """Give the rows of a block the labels `label` (B,)."""
        weights, previous = block.weights, self.label[block.span]
        moved = (label != previous).nonzero()[:, 0]
        values = block.rows[moved].float()
        terms = self._extent.rows(values if weights is None else values * weights[moved, None])
        self.of_rows.index_add_(0, label[moved], terms)
        if self._first_pass:
            centred = values - self._extent.origin.to(values.device)
            squares = torch.linalg.vecdot(centred, centred)
            self.of_squares += self._extent.squares(squares if weights is None else squares * weights).sum()
        else:
            self.of_rows.index_add_(0, previous[moved], terms, alpha=-1)
        self.label[block.span] = label

    def finish_pass(self) -> None:
        """Note that all rows have a label."""
        self._first_pass = False


@dataclass(kw_only=True)
class Pass:
    """The result of one pass: `label` and `squared` of this worker's rows, everything else over all workers."""

    label: Tensor
    """(N,) int32."""
    squared: Tensor | None
    """(N,) float32: squared distance of each row to its centroid; None where it was not asked for."""
    sums: np.ndarray
    """(K, D) float64: weighted sum of the rows of each cluster."""
    counts: np.ndarray
    """(K,) int64: rows of each cluster."""
    mass: np.ndarray
    """(K,) float64: sum of their weights."""
    squares: float
    """Weighted sum of the squared distances of all rows to the origin."""
    inertia: float = math.nan
    """Weighted sum of the squared distances of all rows to their centroids."""

    def inertia_about(self, centroids: np.ndarray, extent: Extent) -> float:
        """The inertia if the clusters, as labelled in this pass, had the centroids (K, D)."""
        origin = extent.origin.numpy().astype(np.float64)
        sums, shifted = self.sums - self.mass[:, None] * origin, centroids - origin
        return max(
            0.0, self.squares - float((2 * sums * shifted).sum()) + float((self.mass * (shifted * shifted).sum(1)).sum())
        )


def run_pass(
    rows: WorkerRows, centroids: np.ndarray, extent: Extent, sums: ClusterSums, engine: Engine, *, distances: bool
) -> Pass:
    """Assign every row to the nearest of `centroids` (K, D) and update `sums`; with `distances` keep squared distances.

    Raises DataError if rows are NaN or infinite.
    """
    on_device = torch.from_numpy(centroids).to(rows.device)
    nearest = NearestCentroid(on_device, extent.origin.to(rows.device), engine=engine)
    squared = torch.empty(rows.source.num_rows, device=rows.device) if distances else None
    mass = torch.zeros(len(centroids), dtype=torch.float64, device=rows.device)
    for block in rows.blocks(nearest.block_rows):
        label = nearest(block.rows).label
        with one_thread():
            sums.update(block, label)
        if squared is not None:
            squared[block.span] = squared_distance(block.rows, on_device, label)
        if block.weights is not None:
            mass.index_add_(0, label, extent.weights(block.weights))
    sums.finish_pass()
    counts = rows.workers.sum(torch.bincount(sums.label, minlength=len(centroids)).cpu().numpy())
    result = Pass(
        label=sums.label,
        squared=squared,
        sums=rows.workers.sum(sums.of_rows.cpu().numpy()).copy(),
        counts=counts,
        mass=counts.astype(np.float64) if rows.weights is None else rows.workers.sum(mass.cpu().numpy()),
        squares=float(rows.workers.sum(sums.of_squares.cpu().numpy()[None])[0]),
    )
    result.inertia = result.inertia_about(centroids, extent)
    if not math.isfinite(result.inertia):
        raise DataError(NOT_FINITE)
    return result


def total_inertia(rows: WorkerRows, squared: Tensor, extent: Extent) -> float:
    """The weighted sum over all workers of the squared distances `squared` (N,) of this worker's rows."""
    terms = squared if rows.weights is None else squared * torch.from_numpy(rows.weights).float().to(rows.device)
    return float(rows.workers.sum(extent.squares(terms).sum()[None].cpu().numpy())[0])
