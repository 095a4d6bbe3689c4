"""Losses shared by methods. All in fp32, whatever the networks ran in."""

import torch
import torch.nn.functional as F
from torch import Tensor


class _PrototypeCrossEntropy(torch.autograd.Function):
    """One view after another, so that the scores (B, K) of only one are in memory; with its gradient, so that none is kept.

    With p = softmax(x W' / t) and a target T whose rows sum to m, the loss of a row is m logsumexp(x W' / t) - T . x W' / t and
    its gradient by the scores is (m p - T) / t.
    """

    @staticmethod
    def forward(ctx: object, x: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
        num_samples, num_views, _ = x.shape
        num_pairs = targets.shape[1] * (num_views - 1)
        loss = x.new_zeros(())
        of_x, of_weight = torch.empty_like(x), torch.zeros_like(weight)
        every = targets.sum(1)
        for view in range(num_views):
            own = view < targets.shape[1]
            target = every - targets[:, view] if own else every
            mass = targets.shape[1] - own
            if not mass:
                of_x[:, view] = 0
                continue
            scores = (x[:, view] @ weight.T) / temperature
            top = torch.logsumexp(scores, dim=1, keepdim=True)
            loss += mass * top.sum() - (target * scores).sum()
            gradient = torch.exp(scores - top).mul_(mass).sub_(target).mul_(1 / (temperature * num_pairs * num_samples))
            of_x[:, view] = gradient @ weight
            of_weight += gradient.T @ x[:, view]
        ctx.save_for_backward(of_x, of_weight)  # type: ignore[attr-defined]
        return loss / (num_pairs * num_samples)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        of_x, of_weight = ctx.saved_tensors  # type: ignore[attr-defined]
        return of_x * gradient, of_weight * gradient, None, None


def swapped_cross_entropy(x: Tensor, prototypes: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each global view's target with the prediction of every other view of the same sample, a scalar.

    DINO's equation 3 and SwAV's equation 2 in its multi-crop form: -1 / (G (V - 1) B) sum over g < G, v != g, b of
    targets[b, g] . log softmax(x[b, v] . prototypes / temperature).

    `x` (B, V, D) are embeddings of length 1, views 0 … G - 1 the ones with `targets` (B, G, K), whose rows sum to 1;
    `prototypes` (K, D) have length 1.
    """
    with torch.autocast(x.device.type, enabled=False):  # which would round scores to bf16
        return _PrototypeCrossEntropy.apply(x.float(), prototypes.float(), targets.float(), temperature)


@torch.no_grad()
def use_of_prototypes(assignments: Tensor) -> dict[str, Tensor]:
    """What a teacher's targets or codes (..., K), whose rows sum to 1, show of the prototypes; scalars.

    "assignment_entropy": the mean entropy of a row, in nats. "prototypes_worth": exp of the entropy of the mean row, from 1 to
    K. "prototypes_used": how many are the largest entry of some row.
    """
    rows = assignments.flatten(0, -2).float()
    mean = rows.mean(0)
    used = torch.zeros_like(mean).index_fill_(0, rows.argmax(1), 1.0)
    return {
        "assignment_entropy": -torch.special.xlogy(rows, rows).sum(1).mean(),
        "prototypes_worth": (-torch.special.xlogy(mean, mean).sum()).exp(),
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
        each = -log_probability.sum(1) / number.clamp_min(1)
        return each.sum() / (number > 0).sum().clamp_min(1)
