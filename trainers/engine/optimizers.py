"""Optimizers, and the learning rate and weight decay of each parameter.

Every optimizer here leaves parameters and state as they are, bit for bit, in a step marked by `skip_if`, and the host never
waits for that: the mark is a tensor on the device.
"""

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.optim import Optimizer

from curation.base.errors import ConfigError
from trainers.engine.config import AdamWConfig, LarsConfig, SgdConfig, TrainConfig
from trainers.methods.method import Method
from trainers.ranks import local_shard


def build_optimizer(method: Method, config: TrainConfig) -> Optimizer:
    """The optimizer `config` names, over the parameters of `method` that take gradients, on the device they are on.

    Learning rates are zero until `set_rates`.
    """
    groups = parameter_groups(method, layer_decay=config.layer_decay, patch_embed_rate=config.patch_embed_rate)
    match config.optimizer:
        case AdamWConfig(betas=betas):
            # Of torch's three implementations only the fused one can skip a step.
            return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
        case SgdConfig(momentum=momentum, nesterov=nesterov):
            return Sgd(groups, momentum=momentum, nesterov=nesterov)
        case LarsConfig(momentum=momentum, trust_coefficient=trust):
            return Sgd([{**group, "trust": trust if group["decays"] else None} for group in groups], momentum=momentum)


def set_rates(optimizer: Optimizer, learning_rate: float, weight_decay: float, *, prototypes_frozen: bool = False) -> None:
    """Write this step's learning rate and weight decay into the groups of `build_optimizer`."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if prototypes_frozen and group["prototypes"] else learning_rate * group["lr_scale"]
        group["weight_decay"] = weight_decay if group["decays"] else 0.0


def skip_if(optimizer: Optimizer, bad: Tensor) -> None:
    """Make the following steps of `optimizer` change nothing while `bad`, a scalar on its device, is true.

    `bad` must be the same on all ranks, as the finiteness of the clipped global gradient norm is. It uses the attribute
    by which torch.amp's GradScaler tells a fused optimizer to skip.
    """
    optimizer.found_inf = bad.to(torch.float32)  # type: ignore[attr-defined]


def parameter_groups(method: Method, *, layer_decay: float = 1.0, patch_embed_rate: float = 1.0) -> list[dict[str, Any]]:
    """Groups for a torch optimizer, as few as possible, each with three keys beside "params".

    "decays": weight decay applies. It does to matrices and kernels, all of which are named `weight`; not to vectors (biases,
    norms, LayerScale) and not to class, position, register and mask tokens.
    "lr_scale": factor of the learning rate; layer_decay ** n for a parameter n layers below the head (Bao et al.,
    "BEiT", ICLR 2022, and DINOv2's code), `patch_embed_rate` times that for the patch embedding.
    "prototypes": the parameters are outside of the student: prototypes, which methods freeze at first.

    Raises ConfigError if the backbone has no such layers.
    """
    depths = _layers_below_head(method.student.backbone) if layer_decay != 1 else {}
    groups: dict[tuple[float, bool, bool], list[nn.Parameter]] = {}
    embedding_found = False
    for name, parameter in method.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.removeprefix("student.backbone.")
        scale = layer_decay ** depths.get(inside, 0) if inside != name else 1.0
        if name.startswith("student.backbone.patch_embed."):
            scale *= patch_embed_rate
            embedding_found = True
        decays = parameter.ndim > 1 and name.endswith("weight")
        groups.setdefault((scale, decays, not name.startswith("student.")), []).append(parameter)
    if patch_embed_rate != 1 and not embedding_found:
        raise ConfigError(
            f"train.patch_embed_rate is {patch_embed_rate}, but a {type(method.student.backbone).__name__} has no patch "
            "embedding. Leave it out, or choose a Vision Transformer."
        )
    return [
        {"params": parameters, "lr_scale": scale, "decays": decays, "prototypes": prototypes}
        for (scale, decays, prototypes), parameters in groups.items()
    ]


def _layers_below_head(backbone: nn.Module) -> dict[str, int]:
    """The number of layers from the head down to each parameter of `backbone`, by name; a ViT's last norm is at 0."""
    if hasattr(backbone, "blocks") and hasattr(backbone, "patch_embed"):
        depth = len(backbone.blocks)  # type: ignore[arg-type]
        stem = re.compile(r"patch_embed\.|norm_pre\.|\w*(token|tokens|pos_embed)$")
        below = {}
        for name, _ in backbone.named_parameters():
            block = re.match(r"blocks\.(\d+)\.", name)
            below[name] = depth - int(block[1]) if block else depth + 1 if stem.match(name) else 0
        return below
    if hasattr(backbone, "group_matcher"):  # timm's own order of layers: of a ResNet its stem, then block by block
        from timm.models import group_parameters

        layers = group_parameters(backbone, backbone.group_matcher(coarse=False), reverse=True)  # type: ignore[operator]
        last = max(layers.values())
        return {name: last + 1 - layer for name, layer in layers.items()}
    raise ConfigError(
        f"train.layer_decay needs to know the order of the layers, which a {type(backbone).__name__} does not provide. "
        "Set it to 1, or choose a Vision Transformer or a timm model."
    )


class Sgd(Optimizer):
    """SGD with momentum and, in groups with a `trust` coefficient, with layer-wise rates: LARS.

    For a weight w with gradient g, both of any shape:

        g <- r (g + weight_decay w)     r = trust |w| / (|g| + weight_decay |w|), or 1 if |w| or |g| is 0, or without `trust`
        v <- momentum v + g
        w <- w - lr v                   with nesterov: w - lr (g + momentum v)

    You et al., "Large Batch Training of Convolutional Networks", 2017, equation 6 and algorithm 1, with the rate outside the
    momentum as in torch's SGD and in the code of SwAV and MoCo v3, whose rates are meant for it. At a constant rate
    the two are the same. Norms are of whole parameters, also where FSDP shards them. Gradients are overwritten.

    torch's fused SGD cannot stand in for it: it takes no DTensor, and its momentum is uninitialised memory after a first
    step that was skipped (torch 2.11 to 2.15).
    """

    _step_supports_amp_scaling = True  # tells GradScaler to leave `grad_scale` and `found_inf` to us

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float, nesterov: bool = False) -> None:
        options = {"lr": 0.0, "momentum": momentum, "nesterov": nesterov, "weight_decay": 0.0, "trust": None}
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            if parameters := [parameter for parameter in group["params"] if parameter.grad is not None]:
                self._update(parameters, group)

    def _update(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        weights, gradients = _shards(parameters), _shards([p.grad for p in parameters])
        momenta = _shards([self.state[p]["momentum_buffer"] for p in parameters])
        weight_decay, grad_scale = group["weight_decay"], getattr(self, "grad_scale", None)
        if group["trust"] is not None:
            if grad_scale is not None:
                torch._foreach_div_(gradients, grad_scale)
                grad_scale = None
            ratios = self._ratios(parameters, group["trust"], weight_decay)
            torch._foreach_add_(gradients, weights, alpha=weight_decay)
            torch._foreach_mul_(gradients, ratios)
            weight_decay = 0.0
        torch._fused_sgd_(
            weights,
            gradients,
            momenta,
            weight_decay=weight_decay,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=0.0,
            nesterov=group["nesterov"],
            maximize=False,
            is_first_step=False,
            grad_scale=grad_scale,
            found_inf=getattr(self, "found_inf", None),
        )

    @staticmethod
    def _ratios(parameters: list[nn.Parameter], trust: float, weight_decay: float) -> list[Tensor]:
        """The ratio r in the formula of the class for each parameter, scalars on the device."""
        weight = _norms(parameters)
        gradient = _norms([p.grad for p in parameters])
        ratio = trust * weight / (gradient + weight_decay * weight)
        return list(torch.where((weight > 0) & (gradient > 0), ratio, 1.0).unbind())


def _shards(tensors: list[Any]) -> list[Tensor]:
    """This rank's shard of each tensor."""
    return [local_shard(tensor) for tensor in tensors]


def _norms(tensors: list[Any]) -> Tensor:
    """The Euclidean norm of each whole tensor: (T,) float32. One sum over ranks for all that are sharded alike."""
    squares = torch.stack(torch._foreach_norm(_shards(tensors), 2, dtype=torch.float32)).square()
    layouts: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        if isinstance(tensor, DTensor):
            layouts.setdefault((tensor.device_mesh, tensor.placements), []).append(index)
    for (mesh, placements), members in layouts.items():
        partial = [Replicate() if isinstance(placement, Replicate) else Partial() for placement in placements]
        squares[members] = DTensor.from_local(squares[members], mesh, partial, run_check=False).full_tensor()
    return squares.sqrt()
