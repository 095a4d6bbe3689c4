"""Data parallelism: networks and gradients over the ranks (DDP, FSDP, HSDP by FSDP2)."""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from trainers.ranks import rank, ranks_per_node, world_size


def parallelise(method: nn.Module, mode: str, device: torch.device, *, bf16: bool = False) -> None:
    """Move a method to `device` and spread its `student` and `teacher` over the ranks: "ddp", "fsdp" or "hsdp".

    One mechanism serves all three: "ddp" splits networks over groups of one rank. Each block of a backbone is a unit of its
    own, so that communication overlaps with computation. Parameters of the networks become DTensors. Their values are those
    of rank 0, which sends them one by one: beside its share a GPU never holds more than one. On other ranks the method
    may be on the meta device. Gradients come out averaged over ranks, in fp32; with `bf16`, which the blocks must support,
    their weights are gathered in bf16.
    """
    if world_size() == 1:
        method.to(device)
        return
    state = [*method.named_parameters(), *method.named_buffers()]
    values = {name: tensor.detach() for name, tensor in state} if rank() == 0 else {}
    method.to("meta")
    split = {"ddp": 1, "fsdp": world_size(), "hsdp": ranks_per_node()}[mode]
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
    _broadcast(method, values, device)


@torch.no_grad()
def _broadcast(method: nn.Module, values: dict[str, Tensor], device: torch.device) -> None:
    """Fill parameters and buffers (DTensors: this rank's shard) with the `values` of rank 0."""
    for name, tensor in [*method.named_parameters(), *method.named_buffers()]:
        sent = values[name].to(device) if rank() == 0 else torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
        dist.broadcast(sent, 0)
        if isinstance(tensor, DTensor):
            shard = distribute_tensor(sent, tensor.device_mesh, tensor.placements, src_data_rank=None)
            tensor.to_local().copy_(shard.to_local())
        else:
            tensor.copy_(sent)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average over ranks the gradients of the parameters that `parallelise` left whole on every rank."""
    if world_size() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None and not isinstance(parameter, DTensor):
            dist.all_reduce(parameter.grad)
            parameter.grad.div_(world_size())


def clip_gradients(parameters: list[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients so that their joint norm is at most `max_norm`; returns the norm before, a scalar on the device."""
    kinds: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        if parameter.grad is not None:
            kinds[isinstance(parameter, DTensor)].append(parameter)
    norms = [nn.utils.get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in kinds.values() if kind]
    norm = torch.stack([norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]).norm()
    for kind in kinds.values():
        nn.utils.clip_grads_with_norm_(kind, max_norm, norm)
    return norm
