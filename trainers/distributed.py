"""The few collectives training needs, with or without a process group."""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from curation.errors import ConfigError


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, in place, without gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class _SumOverRanks(torch.autograd.Function):
    """A sum whose gradient is summed too."""

    @staticmethod
    def forward(_: object, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone())


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the global batch, so that the number of ranks does not change the result.

    What `nn.SyncBatchNorm` does, which refuses to run on the CPU.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (B, C, ...) per channel."""
        if not self.training:
            return super().forward(input)
        axes = [axis for axis in range(input.dim()) if axis != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        count = x.numel() // x.shape[1] * world_size()
        # Both moments travel in one message; in double precision their difference does not cancel.
        sums = torch.stack([x.sum(axes, dtype=torch.float64), (x * x).sum(axes, dtype=torch.float64)])
        first, second = _SumOverRanks.apply(sums) / count
        mean, variance = first.float(), (second - first * first).clamp_min(0).float()
        if self.running_mean is not None and self.running_var is not None:
            momentum = 0.1 if self.momentum is None else self.momentum
            with torch.no_grad():
                self.running_mean.lerp_(mean, momentum)
                self.running_var.lerp_(variance * count / max(count - 1, 1), momentum)
        out = (x - mean.view(shape)) * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            out = out * self.weight.view(shape) + self.bias.view(shape)
        return out.to(input.dtype)


def synchronise_batch_norm(module: nn.Module) -> None:
    """Make every batch norm inside `module` work over the global batch; parameters and their names stay."""
    if world_size() == 1:
        return
    for name, child in module.named_modules():
        if type(child) in (nn.BatchNorm1d, nn.BatchNorm2d):
            child.__class__ = GlobalBatchNorm
        elif isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, GlobalBatchNorm):
            raise ConfigError(
                f"The encoder's layer {name} is a {type(child).__name__}, which cannot be synchronised over ranks. "
                "Set train.ranks=1, or choose an encoder with plain batch norm or layer norm."
            )
