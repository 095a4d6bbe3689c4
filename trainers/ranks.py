"""Ranks of a training: their number and place, and the collectives between them. Without a process group there is one rank."""

import os

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def world_size() -> int:
    """The number of ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The rank of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks_per_node() -> int:
    """The number of ranks on this machine, from LOCAL_WORLD_SIZE, which launchers set; else the number of all ranks."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum `tensor` over all ranks, in place, without gradient; returns it."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: object, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone())


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks.

    The gradient is that of the sum of all ranks' losses: the loop averages over ranks.
    """
    return _SumOverRanks.apply(tensor) if world_size() > 1 else tensor


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(_: object, tensor: Tensor) -> Tensor:
        parts = [torch.empty_like(tensor) for _ in range(world_size())]
        dist.all_gather(parts, tensor.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone()).unflatten(0, (-1, world_size()))[:, rank()]


def gather(tensor: Tensor) -> Tensor:
    """(B, ...) of every rank as (world size * B, ...) in the order of the global batch, whose samples ranks take in turns.

    The gradient is that of the sum of all ranks' losses: the loop averages over ranks.
    """
    return _Gather.apply(tensor) if world_size() > 1 else tensor


def gathered_rows(num_rows: int, device: torch.device) -> Tensor:
    """The places (B,) int64 of this rank's B rows in what `gather` returns."""
    return torch.arange(num_rows, device=device) * world_size() + rank()


def local_shard(tensor: Tensor) -> Tensor:
    """This rank's shard of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_state(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a module with every DTensor put together, on all ranks, on the CPU. All ranks call it."""
    return {name: (x.full_tensor() if isinstance(x, DTensor) else x).cpu() for name, x in module.state_dict().items()}
