"""Equal-partition codes by Sinkhorn-Knopp iterations."""

import torch
from torch import Tensor

from trainers.ranks import sum_over_ranks


@torch.no_grad()
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Codes (B, G, K) of G views, each view independently: rows sum to 1, columns get equal mass over the batches of all ranks.

    Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (SwAV), NeurIPS 2020,
    section 3.1, for scores (B, G, K) and entropy weight `epsilon`. Scaled per row by its maximum before the exponential: a
    factor per row is undone by the row normalisation, so nothing can overflow. Ranks may have different numbers of rows.
    """
    scaled = scores.float() / epsilon
    codes = torch.exp(scaled - scaled.amax(dim=-1, keepdim=True))
    codes = codes / codes.sum(dim=-1, keepdim=True)
    for _ in range(iterations):
        mass = sum_over_ranks(codes.sum(dim=0))
        codes = codes * (mass.mean(dim=-1, keepdim=True) / mass.clamp_min(1e-12))
        codes = codes / codes.sum(dim=-1, keepdim=True).clamp_min(1e-12)
    return codes
