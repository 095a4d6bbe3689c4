"""Blocks of an embedding source as tensors."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from curation.embeddings.source import EmbeddingSource


def tensor(rows: np.ndarray) -> Tensor:
    """`rows` as a tensor that must not be written to: the same memory, or a copy of it if it is read-only."""
    return torch.from_numpy(rows if rows.flags.writeable else rows.copy())


def read_ahead(source: EmbeddingSource) -> Iterator[tuple[int, Tensor]]:
    """Yield the blocks of `source` as (first row, rows (B, D)), and read the next one while the caller works on one.

    The tensors must not be written to.
    """
    blocks = ((first, tensor(block)) for first, block in source.blocks())
    with ThreadPoolExecutor(1) as reader:
        upcoming = reader.submit(next, blocks, None)
        while (block := upcoming.result()) is not None:
            upcoming = reader.submit(next, blocks, None)
            yield block
