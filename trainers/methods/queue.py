"""A queue of earlier embeddings, the same on all ranks."""

import torch
from torch import Tensor, nn


class Queue(nn.Module):
    """The newest `length` entries, each of shape `shape`. Rows that were never written are zero."""

    rows: Tensor

    def __init__(self, length: int, *shape: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(length, *shape))

    def push(self, entries: Tensor, step: int, good: Tensor) -> None:
        """Write the entries (G, ...) of a step over the oldest ones, unless `good` is 0.

        Where they go follows from the number of the step, so that a resumed training needs nothing but the rows.
        """
        length = len(self.rows)
        entries = entries[-length:].to(self.rows.dtype)
        place = (step * len(entries) + torch.arange(len(entries), device=self.rows.device)) % length
        self.rows[place] = torch.where(good > 0, entries, self.rows[place])
