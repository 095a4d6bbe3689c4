"""The few collectives training needs, with or without a process group."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from curation.base.errors import ConfigError


def world_size() -> int:
    """Ranks of the process group; 1 without one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Of this process; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks_here() -> int:
    """Ranks on this machine, as torchrun and `pipeline.runtime.ray_executor` say it; all of them if nobody does."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks, in place, without gradient."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def parallelise(method: nn.Module, mode: str, device: torch.device, *, bf16: bool = False) -> None:
    """Move a method to `device` and spread its `student` and `teacher` over the ranks: "ddp", "fsdp" or "hsdp".

    One mechanism for all three: whole networks are split over groups of one rank. Each block of a backbone is a unit of its
    own, so that communication hides behind computation. Parameters of the networks become DTensors. They start as what they
    are on rank 0, which sends them one by one: beside its share a GPU never holds more than one. On other ranks the method
    may be on the meta device. Gradients come out averaged over ranks, in fp32; with `bf16`, which blocks must know how to
    take, their weights travel in it.
    """
    if world_size() == 1:
        method.to(device)
        return
    state = [*method.named_parameters(), *method.named_buffers()]
    whole = {name: tensor.detach() for name, tensor in state} if rank() == 0 else {}
    method.to("meta")
    split = {"ddp": 1, "fsdp": world_size(), "hsdp": ranks_here()}[mode]
    mesh = init_device_mesh(device.type, (world_size() // split, split), mesh_dim_names=("replicate", "shard"))
    # What is outside of the blocks stays fp32, and with it, under autocast, what is added up from block to block.
    in_blocks = (
        MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False) if bf16 else MixedPrecisionPolicy()
    )
    for network in (getattr(method, "student", None), getattr(method, "teacher", None)):
        if network is None:
            continue
        for block in getattr(network.backbone, "blocks", ()):
            fully_shard(block, mesh=mesh, mp_policy=in_blocks)
        # Also after a forward pass that no backward pass follows, as the teacher's: its parameters are to be moved.
        fully_shard(network, mesh=mesh, reshard_after_forward=True)
    method.to_empty(device=device)
    _broadcast(method, whole, device)


@torch.no_grad()
def _broadcast(method: nn.Module, whole: dict[str, Tensor], device: torch.device) -> None:
    """Fill parameters and buffers, of DTensors each rank its part, with what rank 0 has as `whole`."""
    for name, tensor in [*method.named_parameters(), *method.named_buffers()]:
        sent = whole[name].to(device) if rank() == 0 else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        dist.broadcast(sent, 0)
        if isinstance(tensor, DTensor):
            part = distribute_tensor(sent, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(part.to_local())
        else:
            tensor.copy_(sent)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a split tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with every split tensor put together, on all ranks, on the CPU."""
    return {name: (x.full_tensor() if isinstance(x, DTensor) else x).cpu() for name, x in module.state_dict().items()}


class StopFlag:
    """Whether to stop, as rank 0 sees it, agreed on by all ranks at the same step.

    The message of one step is read at the next, so that nobody waits for it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._group: Any = dist.new_group(backend="gloo") if world_size() > 1 else None
        self._sent: tuple[Tensor, Any] | None = None

    def agreed(self) -> bool:
        """Called by all ranks once a step."""
        here = self._path is not None and rank() == 0 and self._path.exists()
        if self._group is None:
            return here
        before = self._sent
        flag = torch.tensor(float(here))
        self._sent = flag, dist.broadcast(flag, 0, group=self._group, async_op=True)
        if before is None:
            return False
        before[1].wait()
        return bool(before[0])


def average(parameters: Iterable[nn.Parameter]) -> None:
    """Average over ranks the gradients of those that are whole on each of them, which `parallelise` left alone."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world_size())


def clip_gradients(parameters: list[nn.Parameter], most: float) -> Tensor:
    """Scale all gradients so that their norm together is at most `most`; returns what it was, a scalar on the device."""
    kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds[isinstance(parameter, DTensor)].append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds.values() if kind]
    norm = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for kind in kinds.values():
        nn.utils.clip_grads_with_norm_(kind, most, norm)
    return norm


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_: object, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.clone())

    @staticmethod
    def backward(_: object, gradient: Tensor) -> Tensor:
        return sum_over_ranks(gradient.clone())


def sum_with_gradient(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all ranks. Its gradient is of the sum of all ranks' losses: the loop averages over ranks."""
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

    The gradient is of the sum of all ranks' losses: the loop averages over ranks.
    """
    return _Gather.apply(tensor) if world_size() > 1 else tensor


def gathered_rows(num_rows: int, device: torch.device) -> Tensor:
    """(B,) int64: where this rank's B rows are in what `gather` returns."""
    return torch.arange(num_rows, device=device) * world_size() + rank()


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
