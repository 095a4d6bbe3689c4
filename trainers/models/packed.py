"""Packed tokens: the tokens of all crops of a step, whatever their sizes, as the rows of one matrix, without padding.

Operations on single tokens (norms, linear layers) run once on the matrix; attention, which relates the tokens of a sample, runs
on a view of each group of samples of one size.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Group(NamedTuple):
    """Consecutive rows: `samples` crops of one size, `tokens` rows each."""

    samples: int
    tokens: int


class Subset(NamedTuple):
    """A subset of the samples of every group, which a residual branch runs on."""

    groups: list[Group]
    rows: Tensor
    """(T',) int64: the rows of their tokens in the whole matrix."""
    scales: list[float]
    """Number of samples of each group divided by the number taken."""


def pack(samples: Sequence[Tensor]) -> Tensor:
    """Pack a tensor (samples, tokens, D) per group into (T, D)."""
    return torch.cat([group.flatten(0, 1) for group in samples])


def unpack(packed: Tensor, groups: Sequence[Group]) -> list[Tensor]:
    """Views (samples, tokens, D) of the rows of every group of a packed (T, D)."""
    blocks = packed.split([group.samples * group.tokens for group in groups])
    return [block.unflatten(0, group) for block, group in zip(blocks, groups, strict=True)]


def take(groups: Sequence[Group], orders: Sequence[Tensor], rate: float) -> Subset | None:
    """The first 1 - `rate` of the samples of every group in the order (samples,) given for it; None if those are all.

    The number is rounded, at least one, and does not depend on any tensor: shapes are the same at every step.
    """
    counts = [max(1, round(group.samples * (1 - rate))) for group in groups]
    if counts == [group.samples for group in groups]:
        return None
    rows, first = [], 0
    for group, order, count in zip(groups, orders, counts, strict=True):
        token = torch.arange(first, first + group.tokens, device=order.device)
        rows.append((order[:count, None] * group.tokens + token).flatten())
        first += group.samples * group.tokens
    return Subset(
        [Group(count, group.tokens) for group, count in zip(groups, counts, strict=True)],
        torch.cat(rows),
        [group.samples / count for group, count in zip(groups, counts, strict=True)],
    )


def add_branch(
    x: Tensor, groups: Sequence[Group], subset: Subset | None, branch: Callable[[Tensor, Sequence[Group]], Tensor]
) -> Tensor:
    """`x` (T, D) plus a residual branch, which is computed only for the samples of `subset` if there is one.

    Stochastic depth (Huang et al., ECCV 2016) as DINOv2 computes it (Oquab et al. 2024, section 5): dropped samples are not
    computed instead of being multiplied by zero, and the others weigh more, so that the expectation is that of no dropping.
    """
    if subset is None:
        return x + branch(x, groups)
    residuals = unpack(branch(x.index_select(0, subset.rows), subset.groups), subset.groups)
    scaled = pack([residual * scale for residual, scale in zip(residuals, subset.scales, strict=True)])
    return x.index_add(0, subset.rows, scaled.to(x.dtype))
