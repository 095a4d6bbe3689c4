"""Compilation of networks by torch.compile, region by region."""

from collections.abc import Iterator

import torch
import torch._dynamo
from torch import nn

from curation.base.errors import ConfigError
from trainers.engine.config import TrainConfig
from trainers.methods.method import Method
from trainers.models.batch_norm import GlobalBatchNorm

_GRAPHS = 8
"""Graphs of one region: student and teacher, with and without gradients, at two resolutions."""


def compile_backbones(method: Method, config: TrainConfig) -> None:
    """Compile the student's and the teacher's backbone, region by region, after `parallelise`.

    A region is a block of `backbone.blocks`, or a whole backbone without such blocks. Its `forward` is compiled, not the
    module: parameters keep their names, and the hooks by which FSDP gathers weights stay outside of the graph. Shapes are
    static, so that a graph is made for every set of shapes. Blocks that differ only in their weights share graphs.

    Regions with a batch norm that communicates with other ranks, and whole backbones that recompute activations inside, are
    not compiled. Raises ConfigError if `config` asks for compilation and there is nothing else.
    """
    networks = [network for network in (method.student, getattr(method, "teacher", None)) if network is not None]
    regions = [
        region
        for network in networks
        for region in _regions(network.backbone, config.checkpoint_activations)
        if not any(isinstance(module, GlobalBatchNorm) for module in region.modules())
    ]
    if config.compile and not regions:
        raise ConfigError(
            f"train.compile finds nothing to compile in a {type(method.student.backbone).__name__} whose batch norms work over "
            "several ranks, or which recomputes activations. Leave it out, or set train.ranks=1 and no checkpoint_activations."
        )
    # Past the limit torch would silently stop compiling. With stochastic depth every block has different shapes.
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, _GRAPHS * len(regions))
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, _GRAPHS * len(regions))
    for region in regions:
        region.forward = torch.compile(region.forward, dynamic=False)  # type: ignore[method-assign]


def _regions(backbone: nn.Module, recomputes: bool) -> Iterator[nn.Module]:
    """The regions of a backbone; `recomputes` says that it recomputes activations."""
    if hasattr(backbone, "blocks"):
        yield from backbone.blocks  # type: ignore[misc]
    elif not recomputes:
        yield backbone
