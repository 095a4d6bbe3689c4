"""Losses shared by methods."""

import torch
from torch import Tensor


def swapped_cross_entropy(predictions: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each global view's target with the predictions of every other view of the same sample.

    DINO's equation 3 and SwAV's equation 2 in its multi-crop form: -1/(2 (V - 1) B) sum over g in {0, 1}, v != g, b of
    targets[g, b] . predictions[v, b].

    `predictions` (V, B, K) are log-probabilities, views 0 and 1 the global ones; `targets` (2, B, K) are probabilities of
    those two. Returns a scalar.
    """
    with torch.autocast(predictions.device.type, enabled=False):  # which would round log-probabilities to bf16
        pairs = torch.einsum("gbk,vbk->gv", targets.float(), predictions.float())
    return -(pairs.sum() - pairs.diagonal().sum()) / (2 * (len(predictions) - 1) * predictions.shape[1])
