"""Equal-partition codes by Sinkhorn-Knopp iterations."""

import torch
from torch import Tensor

from trainers.distributed import sum_over_ranks, world_size


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Codes (B, K) whose rows sum to 1 and whose columns, over the batches of all ranks, get equal mass.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), NeurIPS 2020,
    section 3.1, for scores (B, K) and entropy weight `epsilon`. Scaled per row by its maximum before the exponential: a
    factor per row is undone by the row normalisation, so nothing can overflow.
    """
    scaled = scores.float() / epsilon
    codes = torch.exp(scaled - scaled.max(dim=1, keepdim=True).values)
    rows = codes.shape[0] * world_size()
    codes = codes / codes.sum(dim=1, keepdim=True)
    for _ in range(iterations):
        mass = sum_over_ranks(codes.sum(dim=0))
        codes = codes * (rows / codes.shape[1] / mass.clamp_min(1e-12))
        codes = codes / codes.sum(dim=1, keepdim=True).clamp_min(1e-12)
    return codes
