"""Blocks of a source as tensors."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from curation.embeddings.source import EmbeddingSource


def tensor(rows: np.ndarray) -> Tensor:
    """Rows as a tensor that nobody may write to: the same memory, or a copy of it where it is read-only."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def read_ahead(source: EmbeddingSource) -> Iterator[tuple[int, Tensor]]:
    """The blocks of `source` as (first row, rows (B, D)), the next one being read while the caller works on one.

    Nobody may write to them.
    """
    blocks = ((first, tensor(block)) for first, block in source.blocks())
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block
