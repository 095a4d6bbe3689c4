"""Run a frozen encoder over samples."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from trainers.data import SampleList
from trainers.encoders import Encoder
from trainers.images import to_square


def embed(
    encoder: Encoder,
    samples: SampleList,
    indices: np.ndarray,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
    on_batch: Callable[[int], None] = lambda _: None,
) -> np.ndarray:
    """Features (M, D) float32 of the samples at `indices` (M,). `on_batch` hears how many are done."""
    device = device or torch.device("cpu")
    encoder = encoder.to(device).eval()
    features: list[np.ndarray] = []
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        for start in range(0, len(indices), batch_size):
            part = indices[start : start + batch_size]
            images = torch.stack(list(pool.map(lambda index: image_of(encoder, samples, int(index)), part)))
            features.append(encoder(images.to(device)).cpu().numpy())
            on_batch(start + len(part))
    return np.concatenate(features)


def image_of(encoder: Encoder, samples: SampleList, index: int) -> torch.Tensor:
    """One sample as the encoder wants it: (3, S, S) uint8."""
    return to_square(samples.image(index), encoder.config.image_size)
