"""Run a frozen encoder over samples."""

import numpy as np
import torch

from trainers.encoders import Encoder
from trainers.samples import SampleList


def embed(
    encoder: Encoder,
    samples: SampleList,
    indices: np.ndarray,
    *,
    batch_size: int = 256,
    device: torch.device | None = None,
) -> np.ndarray:
    """Features (M, D) float32 of the samples at `indices` (M,)."""
    device = device or torch.device("cpu")
    encoder = encoder.to(device).eval()
    features = []
    with torch.inference_mode():
        for start in range(0, len(indices), batch_size):
            images = samples.squares(indices[start : start + batch_size], encoder.config.image_size)
            features.append(encoder(torch.from_numpy(images).to(device)).cpu().numpy())
    return np.concatenate(features)
