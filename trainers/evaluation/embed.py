"""Features of samples by a frozen encoder."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from trainers.data.resize import to_square
from trainers.data.samples import SampleList
from trainers.data.shard_reader import ShardReader
from trainers.models.encoders import Encoder

_FETCHED = 256
"""Samples that are fetched from a store at once."""


def embed(
    encoder: Encoder,
    samples: SampleList,
    indices: np.ndarray,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
) -> np.ndarray:
    """Features (M, D) float32 of the samples at `indices` (M,). The next batch is read while one is encoded."""
    device = device or torch.device("cpu")
    encoder = encoder.to(device).eval()

    def read(first: int) -> torch.Tensor:
        return torch.from_numpy(squares(samples, indices[first : first + batch_size], encoder.config.image_size))

    features = []
    with torch.inference_mode(), ThreadPoolExecutor(1) as reader:
        ahead = reader.submit(read, 0)
        for first in range(0, len(indices), batch_size):
            images, ahead = ahead.result(), reader.submit(read, first + batch_size)
            features.append(encoder(images.to(device)).cpu().numpy())
    return np.concatenate(features)


def squares(samples: SampleList, indices: np.ndarray, size: int) -> np.ndarray:
    """The samples at `indices` (M,), scaled and cut to (M, 3, size, size) uint8, in memory: for batches."""
    reader = ShardReader(samples)
    result = np.empty((len(indices), 3, size, size), dtype=np.uint8)
    with ThreadPoolExecutor(max(2, torch.get_num_threads())) as pool:
        for start in range(0, len(indices), _FETCHED):
            chunk = indices[start : start + _FETCHED]
            reader.ahead(chunk)
            images = pool.map(lambda index: to_square(reader.image(int(index)), size).numpy(), chunk)
            for place, image in enumerate(images, start):
                result[place] = image
    return result
