"""Every loss against a literal transcription of its paper's formula, with loops over samples, in double precision."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.helpers import on_ranks
from trainers.methods.barlow_twins import redundancy
from trainers.methods.byol import regression
from trainers.methods.deepcluster import classification
from trainers.methods.losses import koleo, masked_cross_entropy, swapped_cross_entropy
from trainers.methods.moco_v2 import queue_contrast
from trainers.methods.moco_v3 import symmetric_contrast
from trainers.methods.npid import noise_contrast
from trainers.methods.simclr import contrast
from trainers.methods.sinkhorn import sinkhorn
from trainers.methods.vicreg import correlation, spread
from trainers.methods.w_mse import whiten, whitened_error


def drawn(*shape: int, unit: bool = False, seed: int = 0) -> Tensor:
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return F.normalize(rows, dim=-1) if unit else rows


def same(found: Tensor, expected: float) -> bool:
    return math.isclose(float(found), expected, rel_tol=2e-5, abs_tol=1e-6)


def test_swapped_cross_entropy_is_the_double_sum_of_the_papers() -> None:
    x, prototypes = drawn(3, 5, 4, unit=True), drawn(7, 4, unit=True, seed=1)
    targets = torch.softmax(drawn(3, 2, 7, seed=2) / 0.04, dim=-1)
    total, terms = 0.0, 0
    for b in range(3):
        for g in range(2):
            for v in range(5):
                if v == g:
                    continue
                prediction = torch.softmax(torch.stack([x[b, v].double() @ p.double() for p in prototypes]) / 0.1, dim=0)
                total -= sum(float(targets[b, g, k]) * math.log(float(prediction[k])) for k in range(7))
                terms += 1
    assert same(swapped_cross_entropy(x, prototypes, targets, 0.1), total / terms)


def test_the_gradient_of_swapped_cross_entropy_is_autograds() -> None:
    x, prototypes = drawn(3, 4, 6, unit=True).requires_grad_(), drawn(7, 6, unit=True, seed=1).requires_grad_()
    targets = torch.softmax(drawn(3, 2, 7, seed=2), dim=-1)
    (3 * swapped_cross_entropy(x, prototypes, targets, 0.1)).backward()
    found = x.grad, prototypes.grad
    x.grad = prototypes.grad = None
    log_probability = F.log_softmax(x @ prototypes.T / 0.1, dim=-1)
    terms = [-(targets[:, g] * log_probability[:, v]).sum(1).mean() for g in range(2) for v in range(4) if v != g]
    (3 * torch.stack(terms).mean()).backward()
    for one, other in zip(found, (x.grad, prototypes.grad), strict=True):
        assert one is not None
        assert torch.allclose(one, other, atol=1e-6)


def test_swapped_cross_entropy_survives_extreme_scores() -> None:
    x, prototypes = drawn(3, 4, 6, unit=True).requires_grad_(), drawn(7, 6, unit=True, seed=1)
    loss = swapped_cross_entropy(x, prototypes, torch.softmax(drawn(3, 2, 7), dim=-1), 1e-6)
    loss.backward()
    assert loss.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def literal_nt_xent(z: Tensor, positives: dict[int, list[int]], temperature: float) -> float:
    """For every row i: the mean over its positives p of -log exp(i . p / t) / sum over a != i of exp(i . a / t)."""
    z = z.double()
    each = []
    for i, found in positives.items():
        below = sum(math.exp(float(z[i] @ z[a]) / temperature) for a in range(len(z)) if a != i)
        each.append(-sum(math.log(math.exp(float(z[i] @ z[p]) / temperature) / below) for p in found) / len(found))
    return sum(each) / len(each)


@pytest.mark.parametrize("num_views", [2, 3])
def test_simclr_and_supervised_contrast(num_views: int) -> None:
    z, own = drawn(4, num_views, 5, unit=True), torch.arange(4)
    label = torch.tensor([0, 1, 0, 2])
    rows = [(sample, view) for sample in range(4) for view in range(num_views)]

    def positives(alike: Tensor) -> dict[int, list[int]]:
        return {i: [j for j, (b, _) in enumerate(rows) if j != i and alike[a, b]] for i, (a, _) in enumerate(rows)}

    for alike in (torch.eye(4, dtype=torch.bool), label[:, None] == label):
        expected = literal_nt_xent(z.flatten(0, 1), positives(alike), 0.1)
        assert same(contrast(z, z, own, alike, 0.1), expected)


def test_momentum_contrast_with_a_queue() -> None:
    query, key, queue = drawn(3, 4, unit=True), drawn(3, 4, unit=True, seed=1), drawn(5, 4, unit=True, seed=2)
    each = []
    for q, k in zip(query.double(), key.double(), strict=True):
        positive = math.exp(float(q @ k) / 0.2)
        each.append(-math.log(positive / (positive + sum(math.exp(float(q @ n) / 0.2) for n in queue.double()))))
    assert same(queue_contrast(query, key, queue, 0.2), sum(each) / 3)


def test_symmetric_momentum_contrast() -> None:
    query, keys = drawn(4, 2, 5, unit=True), drawn(4, 2, 5, unit=True, seed=1)

    def ctr(q: Tensor, k: Tensor) -> float:
        logits = q.double() @ k.double().T / 0.2
        return 2 * 0.2 * sum(-float(torch.log_softmax(logits[i], 0)[i]) for i in range(4)) / 4

    expected = ctr(query[:, 0], keys[:, 1]) + ctr(query[:, 1], keys[:, 0])
    assert same(symmetric_contrast(query, keys, torch.arange(4), 0.2), expected)


def test_byol_regression() -> None:
    predictions, targets = drawn(3, 2, 5), drawn(3, 2, 5, seed=1)

    def one(p: Tensor, t: Tensor) -> float:
        p, t = p.double(), t.double()
        return sum(float((a / a.norm() - b / b.norm()).square().sum()) for a, b in zip(p, t, strict=True)) / len(p)

    expected = one(predictions[:, 0], targets[:, 1]) + one(predictions[:, 1], targets[:, 0])
    assert same(regression(predictions, targets), expected)


def test_barlow_twins_redundancy() -> None:
    c = drawn(6, 6)
    expected = sum((1 - float(c[i, i])) ** 2 for i in range(6))
    expected += 0.005 * sum(float(c[i, j]) ** 2 for i in range(6) for j in range(6) if i != j)
    assert same(redundancy(c, 0.005), expected)


def test_vicreg_variance_and_covariance() -> None:
    z = drawn(8, 5) * torch.tensor([0.1, 0.5, 1, 2, 3])
    rows = z.double().numpy()
    expected = sum(max(0.0, 1 - math.sqrt(np.var(rows[:, j], ddof=1) + 1e-4)) for j in range(5)) / 5
    assert same(spread(z), expected)
    covariance = np.cov(rows.T)
    assert same(correlation(z), sum(covariance[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5)


def test_whitening_and_its_error() -> None:
    z = drawn(40, 2, 4) @ drawn(4, 4, seed=1)
    white = whiten(z[:, 0])
    assert torch.allclose(white.mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(torch.cov(white.T), torch.eye(4), atol=2e-2)
    sides = []
    for view in range(2):
        rows = z[:, view].double().numpy()
        factor = np.linalg.cholesky(0.999 * np.cov(rows.T) + 0.001 * np.eye(4))
        rows = (np.linalg.inv(factor) @ (rows - rows.mean(0)).T).T
        sides.append(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    assert same(whitened_error(z), float(((sides[0] - sides[1]) ** 2).sum(1).mean()))


def test_noise_contrast_of_instances() -> None:
    positive, negative, normaliser = drawn(3), drawn(3, 6, seed=1), 50.0
    m, n = 6, 20

    def posterior(similarity: float) -> float:
        p = math.exp(similarity) / normaliser
        return p / (p + m / n)

    expected = -sum(math.log(posterior(float(s))) for s in positive) / 3
    expected -= sum(math.log(1 - posterior(float(s))) for s in negative.flatten()) / 3
    assert same(noise_contrast(positive, negative, torch.tensor(normaliser), n), expected)


def test_classification_of_clusters() -> None:
    seen, prototypes = drawn(3, 2, 4, unit=True), drawn(2, 5, 4, unit=True, seed=1)
    label = torch.tensor([[0, 4, 2], [1, 1, 3]])
    total = 0.0
    for h in range(2):
        for b in range(3):
            for v in range(2):
                scores = [math.exp(float(seen[b, v].double() @ p.double()) / 0.1) for p in prototypes[h]]
                total -= math.log(scores[label[h, b]] / sum(scores))
    assert same(classification(seen, prototypes, label, 0.1), total / 12)


def literal_sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Algorithm 1 of SwAV, in double precision."""
    q = torch.exp(scores.double() / epsilon).T
    q /= q.sum()
    k, b = q.shape
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True) * k
        q /= q.sum(dim=0, keepdim=True) * b
    return (q * b).T


def test_sinkhorn_is_the_algorithm_of_the_paper() -> None:
    scores = torch.rand(32, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = sinkhorn(scores[:, None], epsilon=0.05, iterations=50)[:, 0]
    expected = literal_sinkhorn(scores, 0.05, 50)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.allclose(found.sum(1), torch.ones(32), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.full((12,), 32 / 12), atol=5e-3)


def test_sinkhorn_survives_extreme_scores() -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    codes = sinkhorn(scores[:, None], epsilon=0.05, iterations=3)[:, 0]
    assert codes.isfinite().all()
    assert torch.allclose(codes.sum(1), torch.ones(3), atol=1e-5)


def _sinkhorn_on_a_rank(rank: int) -> None:
    scores = torch.rand(24, 6, generator=torch.Generator().manual_seed(0))
    whole = literal_sinkhorn(scores, 0.05, 60)
    mine = sinkhorn(scores.chunk(2)[rank][:, None], epsilon=0.05, iterations=60)
    assert torch.allclose(mine[:, 0].double(), whole.chunk(2)[rank], atol=1e-4)


def test_sinkhorn_over_two_ranks_is_that_of_the_global_batch() -> None:
    on_ranks(_sinkhorn_on_a_rank, 2)


def test_masked_cross_entropy_is_a_weighted_sum() -> None:
    x, prototypes = drawn(5, 4, unit=True), drawn(7, 4, unit=True, seed=1)
    targets, weight = torch.softmax(drawn(5, 7, seed=2), dim=-1), torch.tensor([1, 0.5, 0.5, 0.25, 2])
    expected = 0.0
    for m in range(5):
        prediction = torch.softmax(prototypes.double() @ x[m].double() / 0.1, dim=0)
        expected -= float(weight[m]) * sum(float(targets[m, k]) * math.log(float(prediction[k])) for k in range(7))
    assert same(masked_cross_entropy(x, prototypes, targets, weight, 0.1), expected)


def test_koleo_is_the_log_of_the_distance_to_the_nearest_other() -> None:
    x = drawn(6, 4, unit=True)
    rows = x.double()
    nearest = [min(float((rows[i] - rows[j]).norm()) for j in range(6) if j != i) for i in range(6)]
    expected = -sum(map(math.log, nearest)) / 6
    assert same(koleo(x, x), expected)


def test_koleo_passes_over_duplicates_and_stays_finite() -> None:
    one, other = drawn(2, 4, unit=True)
    x = torch.stack([one, one, other]).requires_grad_()
    loss = koleo(x, x)
    assert same(loss, -math.log(float((one - other).norm())))
    loss.backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    alike = one.expand(3, 4).clone().half().requires_grad_()
    assert float(koleo(alike, alike)) == 0
    assert float(koleo(one[None], one[None])) == 0
