"""Batch normalisation over the global batch."""

import torch
from torch import Tensor, nn

from curation.base.errors import ConfigError
from trainers.ranks import sum_with_gradient, world_size


class GlobalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation over the samples of all ranks, so that the number of ranks does not change the result.

    Computes the same as `nn.SyncBatchNorm`, which does not run on the CPU.
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
        first, second = sum_with_gradient(sums) / count
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
    """Make every batch norm inside `module` work over the global batch; parameters and their names stay.

    Raises ConfigError for a batch norm of another class, which cannot be synchronised.
    """
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
