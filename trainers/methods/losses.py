"""Losses shared by methods. All in fp32, whatever the networks ran in."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 8192
"""Rows whose scores are in memory at once."""


class _PrototypeCrossEntropy(torch.autograd.Function):
    """The sum of m logsumexp(x W' / t) - T . x W' / t over rows x, each with a target T whose entries sum to m.

    That is the cross-entropy of T with softmax(x W' / t) = p, and its gradient by the scores is (m p - T) / t. It is computed
    together with the loss, block by block, so that the scores of all rows are never in memory. `targets(rows)` gives T.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Callable[[slice], Tensor], temperature: float) -> Tensor:
        loss = x.new_zeros(())
        x_gradient, weight_gradient = torch.empty_like(x), torch.zeros_like(weight)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            target = targets(rows)
            mass = target.sum(1, keepdim=True)
            scores = (x[rows] @ weight.T) / temperature
            top = torch.logsumexp(scores, dim=1, keepdim=True)
            loss += (mass * top).sum() - (target * scores).sum()
            gradient = torch.exp(scores - top).mul_(mass).sub_(target).div_(temperature)
            x_gradient[rows] = gradient @ weight
            weight_gradient += gradient.T @ x[rows]
        ctx.save_for_backward(x_gradient, weight_gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x_gradient, weight_gradient = ctx.saved_tensors
        return x_gradient * gradient, weight_gradient * gradient, None, None


def swapped_cross_entropy(x: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each global view's target with the prediction of every other view of the same sample, a scalar.

    DINO's equation 3 and SwAV's equation 2 in its multi-crop form: -1 / (G (V - 1) B) sum over g < G, v != g, b of
    targets[b, g] . log softmax(x[b, v] . prototypes / temperature).

    `x` (B, V, D) are embeddings of length 1, views 0 … G - 1 the ones with `targets` (B, G, K), whose rows sum to 1;
    `prototypes` (K, D) have length 1.
    """
    num_samples, num_views, _ = x.shape
    num_targets = targets.shape[1]
    target_sum = targets.sum(1)
    loss = x.new_zeros((), dtype=torch.float32)
    with torch.autocast(x.device.type, enabled=False):  # which would round scores to bf16
        for view in range(num_views):
            if num_targets == 1 and view == 0:
                continue
            target = target_sum - targets[:, view] if view < num_targets else target_sum
            loss = loss + _PrototypeCrossEntropy.apply(
                x[:, view].float(), prototypes.float(), lambda rows, target=target: target[rows].float(), temperature
            )
    return loss / (num_targets * (num_views - 1) * num_samples)


def masked_cross_entropy(x: Tensor, prototypes: Tensor, targets: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """The sum of weight[m] times the cross-entropy of targets[m] with softmax(x[m] . prototypes / temperature), a scalar.

    iBOT's equation 2 for masked patches `x` (M, D) of length 1 with `targets` (M, K), `weight` (M,) and `prototypes` (K, D) of
    length 1.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _PrototypeCrossEntropy.apply(
            x.float(), prototypes.float(), lambda rows: targets[rows].float() * weight[rows, None], temperature
        )


def koleo(x: Tensor, all_x: Tensor) -> Tensor:
    """The mean of -log of the distance to the nearest other embedding, a scalar: spreads embeddings evenly.

    Sablayrolles et al., "Spreading Vectors for Similarity Search", ICLR 2019, equation 4. `x` (B, D) are this rank's
    rows of `all_x` (G, D), of length 1. Equal embeddings, such as those of duplicate images, do not count as others: their
    distance has no gradient and its logarithm no bound.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, all_x = x.float(), all_x.float()
        with torch.no_grad():
            cosine = x @ all_x.T
            cosine = cosine.masked_fill(cosine > 1 - 1e-6, -2)
            nearest, index = cosine.max(1)
        has_other = nearest > -2
        distance = (x - all_x[index]).square().sum(1).clamp_min(1e-12).sqrt()
        return -torch.where(has_other, distance, 1.0).log().sum() / len(x)


@torch.no_grad()
def use_of_prototypes(assignments: Tensor) -> dict[str, Tensor]:
    """Measures of how a teacher's targets or codes (..., K), whose rows sum to 1, use the prototypes; scalars.

    "assignment_entropy": the mean entropy of a row, in nats. "prototype_perplexity": exp of the entropy of the mean row, from 1
    to K. "prototypes_used": how many prototypes are the largest entry of some row.
    """
    rows = assignments.flatten(0, -2).float()
    mean = rows.mean(0)
    used = torch.zeros_like(mean).index_fill_(0, rows.argmax(1), 1.0)
    return {
        "assignment_entropy": -torch.special.xlogy(rows, rows).sum(1).mean(),
        "prototype_perplexity": (-torch.special.xlogy(mean, mean).sum()).exp(),
        "prototypes_used": used.sum(),
    }


def multi_positive_cross_entropy(
    queries: Tensor, keys: Tensor, positive: Tensor, allowed: Tensor, temperature: float
) -> Tensor:
    """-log softmax of the positives' similarities, averaged over the positives of a query and then over queries: a scalar.

    The sum over positives is outside of the logarithm (Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020,
    equation 2). `queries` (Q, D) and `keys` (M, D) have length 1; `positive` and `allowed` are (Q, M) bool, and the softmax of
    a query runs over the keys it is allowed. Queries without a positive do not count.
    """
    with torch.autocast(queries.device.type, enabled=False):
        scores = (queries.float() @ keys.float().T / temperature).masked_fill(~allowed, -torch.inf)
        log_probability = F.log_softmax(scores, dim=1).masked_fill(~positive, 0)
        number = positive.sum(1)
        loss = -log_probability.sum(1) / number.clamp_min(1)
        return loss.sum() / (number > 0).sum().clamp_min(1)
