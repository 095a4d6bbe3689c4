"""The gradient of one step, of all samples at once or of parts of them one after another."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from trainers.methods.method import Clock, Method, StepOutput, Views


def backward(
    method: Method,
    views: Views,
    clock: Clock,
    *,
    parts: int,
    seed: Callable[[int], object],
    precision: Callable[[], AbstractContextManager[object]],
    recomputes: bool = False,
) -> StepOutput:
    """Add the gradient of the step's loss to the parameters.

    With several `parts` only so many samples are in the networks at a time, yet the loss still sees all of them, so that
    contrastive losses, centering and Sinkhorn codes are those of the whole batch: the student runs once to know its outputs,
    the loss gives their gradients, and the student runs again to carry them to its weights (Gao et al., "Scaling Deep
    Contrastive Learning Batch Size under Memory Limited Setup", RepL4NLP 2021). `seed` takes the number of the part and
    seeds torch's generator, alike for both runs of a part. Batch norm sees one part at a time. `recomputes` says that the
    backward pass runs blocks of the student again.
    """
    kept = partial(_running_statistics_kept, method.student) if recomputes else nullcontext
    if parts == 1:
        seed(0)
        with precision():
            targets = method.targets(views, clock)
            outputs = method.student(*method.inputs(views, clock))
            found = method.loss(outputs, targets, views, clock)
        with kept():
            found.loss.backward()
        return found
    size = len(views.sample) // parts
    pieces = [views.part(slice(part * size, (part + 1) * size)) for part in range(parts)]
    told, seen = [], []
    with torch.no_grad(), precision(), _running_statistics_kept(method.student):
        for part, piece in enumerate(pieces):
            seed(part)
            told.append(method.targets(piece, clock))
            seen.append(method.student(*method.inputs(piece, clock)))
    outputs = tuple(torch.cat(tensors).requires_grad_() for tensors in zip(*seen, strict=True))
    with precision():
        found = method.loss(outputs, tuple(map(torch.cat, zip(*told, strict=True))), views, clock)
    found.loss.backward()
    gradients = {
        number: output.grad.split([len(one[number]) for one in seen])
        for number, output in enumerate(outputs)
        if output.grad is not None
    }
    for part, piece in enumerate(pieces):
        seed(part)
        _reduce_gradients(method.student, part == parts - 1)
        with precision():
            again = method.student(*method.inputs(piece, clock))
        with kept():
            torch.autograd.backward(
                [again[number] for number in gradients], [parts_of[part] for parts_of in gradients.values()]
            )
    return found


def _reduce_gradients(network: nn.Module, now: bool) -> None:
    if isinstance(network, FSDPModule):
        network.set_requires_gradient_sync(now)


@contextmanager
def _running_statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch norms go by their batch but do not remember it: they see it again, here or where activations are recomputed."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
