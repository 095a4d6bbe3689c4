import pytest
import torch
from torch import nn

from curation.base.errors import ConfigError
from tests.helpers import on_ranks
from trainers.models.batch_norm import GlobalBatchNorm, synchronise_batch_norm


def _batch() -> torch.Tensor:
    return torch.randn(12, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 3 + 1


def _norm(batch: torch.Tensor, norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    batch = batch.clone().requires_grad_()
    out = norm(batch)
    (out * torch.linspace(0, 1, out[0].numel()).view_as(out[0])).sum().backward()
    assert batch.grad is not None
    return out.detach(), batch.grad


def test_alone_it_is_batch_norm() -> None:
    plain, ours = nn.BatchNorm2d(4), GlobalBatchNorm(4)
    for found, expected in zip(_norm(_batch(), ours), _norm(_batch(), plain), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(ours.running_var, plain.running_var, atol=1e-5)  # type: ignore[arg-type]
    plain.eval()
    ours.eval()
    assert torch.allclose(ours(_batch()), plain(_batch()), atol=1e-5)


def _on_a_rank(rank: int) -> None:
    expected_out, expected_gradient = _norm(_batch(), nn.BatchNorm2d(4))
    model = nn.Sequential(nn.BatchNorm2d(4))
    synchronise_batch_norm(model)
    out, gradient = _norm(_batch().chunk(2)[rank], model)
    assert torch.allclose(out, expected_out.chunk(2)[rank], atol=1e-5)
    assert torch.allclose(gradient, expected_gradient.chunk(2)[rank], atol=1e-5)

    class FusedNorm(nn.BatchNorm2d):
        pass

    with pytest.raises(ConfigError, match="FusedNorm"):
        synchronise_batch_norm(nn.Sequential(FusedNorm(4)))


def test_on_two_ranks_it_is_batch_norm_of_the_global_batch() -> None:
    on_ranks(_on_a_rank, 2)
