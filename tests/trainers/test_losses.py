import math

import torch

from tests.helpers import on_ranks
from trainers.losses import swapped_cross_entropy
from trainers.sinkhorn import sinkhorn


def test_swapped_cross_entropy_is_the_double_sum_of_the_papers() -> None:
    torch.manual_seed(0)
    views, batch, prototypes = 5, 3, 7
    student, teacher = torch.randn(views, batch, prototypes), torch.randn(2, batch, prototypes)
    total, terms = 0.0, 0
    for b in range(batch):
        for g in range(2):
            target = torch.softmax(teacher[g, b] / 0.04, dim=0)
            for v in range(views):
                if v == g:
                    continue
                prediction = torch.softmax(student[v, b] / 0.1, dim=0)
                total -= sum(float(target[k]) * math.log(float(prediction[k])) for k in range(prototypes))
                terms += 1
    found = swapped_cross_entropy(torch.log_softmax(student / 0.1, -1), torch.softmax(teacher / 0.04, -1))
    assert math.isclose(float(found), total / terms, rel_tol=1e-5)


def literal_sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
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
    found = sinkhorn(scores, epsilon=0.05, iterations=50)
    expected = literal_sinkhorn(scores, 0.05, 50)
    assert torch.allclose(found.double(), expected, atol=1e-4)
    assert torch.allclose(found.sum(1), torch.ones(32), atol=1e-5)
    assert torch.allclose(found.sum(0), torch.full((12,), 32 / 12), atol=5e-3)


def test_sinkhorn_survives_extreme_scores() -> None:
    scores = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [0.0, 0.0, 0.0]])
    codes = sinkhorn(scores, epsilon=0.05, iterations=3)
    assert codes.isfinite().all()
    assert torch.allclose(codes.sum(1), torch.ones(3), atol=1e-5)


def _sinkhorn_on_a_rank(rank: int) -> None:
    scores = torch.rand(24, 6, generator=torch.Generator().manual_seed(0))
    whole = literal_sinkhorn(scores, 0.05, 60)
    mine = sinkhorn(scores.chunk(2)[rank], epsilon=0.05, iterations=60)
    assert torch.allclose(mine.double(), whole.chunk(2)[rank], atol=1e-4)


def test_sinkhorn_over_two_ranks_is_that_of_the_global_batch() -> None:
    on_ranks(_sinkhorn_on_a_rank, 2)
