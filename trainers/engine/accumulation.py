"""The gradient of one step, from all samples at once or from pieces of the batch one after another."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from trainers.methods.method import Clock, Method, StepOutput, Views
from trainers.models.heads import Encoded


def backward(
    method: Method,
    views: Views,
    clock: Clock,
    *,
    pieces: int,
    seed: Callable[[int], object],
    precision: Callable[[], AbstractContextManager[object]],
    recomputes: bool = False,
) -> StepOutput:
    """Add the gradient of the step's loss to the parameters.

    With several `pieces` only one piece of the samples is in the networks at a time, yet the loss still sees all of them, so
    that contrastive losses, centering and Sinkhorn codes are those of the whole batch: the student runs once for its outputs,
    the loss gives their gradients, and the student runs again to carry them to its weights (Gao et al., "Scaling Deep
    Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021). `seed` takes the number of the piece and
    seeds torch's generator, the same for both runs of a piece. Batch norm sees one piece at a time. `recomputes` says that the
    backward pass runs blocks of the student again.
    """
    statistics_kept = partial(_running_statistics_kept, method.student) if recomputes else nullcontext
    if pieces == 1:
        seed(0)
        with precision():
            targets = method.targets(views, clock)
            outputs = method.student(*method.inputs(views, clock))
            result = method.loss(outputs, targets, views, clock)
        with statistics_kept():
            result.loss.backward()
        return result
    size = len(views.sample) // pieces
    views_of = [views.rows(slice(piece * size, (piece + 1) * size)) for piece in range(pieces)]
    targets_of, outputs_of = list[Encoded](), list[Encoded]()
    with torch.no_grad(), precision(), _running_statistics_kept(method.student):
        for piece, some_views in enumerate(views_of):
            seed(piece)
            targets_of.append(method.targets(some_views, clock))
            outputs_of.append(method.student(*method.inputs(some_views, clock)))
    outputs = Encoded.concatenate(outputs_of)
    for output in outputs:
        if output is not None:
            output.requires_grad_()
    with precision():
        result = method.loss(outputs, Encoded.concatenate(targets_of), views, clock)
    result.loss.backward()
    gradients = {
        field: output.grad.split([len(getattr(piece_outputs, field)) for piece_outputs in outputs_of])
        for field, output in outputs._asdict().items()
        if output is not None and output.grad is not None
    }
    for piece, some_views in enumerate(views_of):
        seed(piece)
        _reduce_gradients(method.student, piece == pieces - 1)
        with precision():
            again = method.student(*method.inputs(some_views, clock))
        with statistics_kept():
            torch.autograd.backward(
                [getattr(again, field) for field in gradients], [split[piece] for split in gradients.values()]
            )
    return result


def _reduce_gradients(network: nn.Module, now: bool) -> None:
    """Set whether FSDP reduces gradients over ranks in the next backward pass."""
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


@contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Keep the running statistics of batch norms: they see the same batch again, here or where activations are recomputed."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
