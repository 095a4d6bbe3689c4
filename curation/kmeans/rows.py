"""The rows that one worker of a k-means holds: samples and blocks of them, kept on the device where there is room."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from curation.base import rng
from curation.base.collectives import Collectives, place_among
from curation.base.errors import DataError
from curation.distance.nearest import squared_distance
from curation.embeddings.blocks import read_ahead
from curation.embeddings.source import EmbeddingSource

NOT_FINITE = "Some embeddings are NaN or infinite. Embed again, or remove those rows."
_BLOCK = 16384
_UPLOAD = 2**17
"""Rows sent to a GPU at once."""


class RowBlock(NamedTuple):
    """Consecutive rows of one worker."""

    span: slice
    """Their positions among the worker's rows."""
    rows: Tensor
    """(B, D), in the type of the source."""
    weights: Tensor | None
    """(B,) float32."""


@dataclass(frozen=True)
class WorkerRows:
    """The N rows of this worker and their place among the rows of all workers."""

    source: EmbeddingSource
    weights: np.ndarray | None
    """(N,) float32; None: each row counts 1."""
    workers: Collectives
    first: int
    """Number of rows on workers of smaller rank."""
    total: int
    """Number of rows on all workers."""
    device: torch.device
    resident: Tensor | None
    """All rows (N, D) on the device, if there is room for them."""

    @classmethod
    def of(
        cls, source: EmbeddingSource, weights: np.ndarray | None, workers: Collectives, device: torch.device
    ) -> "WorkerRows":
        """The rows of `source`, loaded onto a GPU if they fit. All workers must call it together."""
        first, total = place_among(workers, source.num_rows)
        return cls(source, weights, workers, first, total, device, _resident(source, device))

    def sample(self, size: int, rng_key: int) -> tuple[np.ndarray, np.ndarray | None]:
        """`size` random rows of all workers (M, D) float32, and their weights (M,) float32; the same on every worker."""
        drawn = np.sort(rng.permute(rng_key, np.arange(min(size, self.total)), self.total)) - self.first
        local = drawn[(drawn >= 0) & (drawn < self.source.num_rows)]
        rows = np.concatenate(self.workers.gather(self.source.take(local).astype(np.float32)))
        if not np.isfinite(rows).all():
            raise DataError(NOT_FINITE)
        if self.weights is None:
            return rows, None
        return rows, np.concatenate(self.workers.gather(self.weights[local].astype(np.float32)))

    def blocks(self, size: int) -> Iterator[RowBlock]:
        """All rows of this worker in order, at most `size` at once."""
        pieces = [(0, self.resident)] if self.resident is not None else self._uploads(size)
        for first, piece in pieces:
            for start in range(0, len(piece), size):
                rows = piece[start : start + size].to(self.device)
                span = slice(first + start, first + start + len(rows))
                weights = None if self.weights is None else torch.from_numpy(self.weights[span]).float().to(self.device)
                yield RowBlock(span, rows, weights)

    def _uploads(self, size: int) -> Iterator[tuple[int, Tensor]]:
        """The blocks of the source as (first row, rows); for a GPU joined to pieces large enough to keep it busy."""
        if self.device.type == "cpu":
            yield from read_ahead(self.source)
            return
        pending: list[Tensor] = []
        start = end = 0
        for first, block in read_ahead(self.source):
            pending.append(block)
            end = first + len(block)
            if end - start >= min(size, _UPLOAD):
                yield start, torch.cat(pending).pin_memory()
                pending, start = [], end
        if pending:
            yield start, torch.cat(pending).pin_memory()

    def squared_distance(self, centroids: np.ndarray, label: Tensor) -> Tensor:
        """(N,) float32: squared distance of each row to the one of `centroids` (K, D) that its `label` (N,) names."""
        on_device = torch.from_numpy(centroids).to(self.device)
        squared = torch.empty(self.source.num_rows, device=self.device)
        for span, rows, _ in self.blocks(_BLOCK):
            squared[span] = squared_distance(rows, on_device, label[span])
        return squared


def _resident(source: EmbeddingSource, device: torch.device) -> Tensor | None:
    """All rows (N, D) of `source` on the device, None if they need more than the room for them."""
    room, resident = _room(device), None
    for first, rows in read_ahead(source) if room else ():
        if resident is None:
            if source.num_rows * source.dim * rows.element_size() > room:
                return None
            resident = torch.empty(source.num_rows, source.dim, dtype=rows.dtype, device=device)
        resident[first : first + len(rows)] = rows
    return resident


def _room(device: torch.device) -> int:
    """Bytes for resident rows: half of a GPU's free memory, and nothing on the CPU, where the source's own cache is."""
    return torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 0
