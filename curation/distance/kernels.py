"""Nearest centroids on a GPU: Triton kernels for fp16 products whose scores never leave the chip.

A block of rows is compared with one tile of centroids after another. A score and its column in the tile are packed into one
32-bit word, so the best and the runner-up are two plain minima; the precision that the column's bits cost is part of the
stated error.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from curation.distance.products import Coarse

_ROWS, _COLUMNS, _DEPTH = 128, 256, 64
_WARPS, _STAGES = 8, 3
_CANDIDATES_PER_ROW = 16
"""Size of the first buffer for candidates; it grows if there are more."""


class HalfProducts:
    """Scores from fp16 products that are added up in float32: rows in fp16 are used as they are, centroids are rounded.

    Only centroids are centred: with c' = c - origin the score is |c'|² + 2 origin·c' - 2 x·c', which is |x - c|² up to a term
    that depends on the row alone. So only the rounding of c' matters, and c' is small. A constant per row, the lift, makes all
    its scores positive, because the bits of positive floats order like integers.
    """

    block_rows = 2**20

    def __init__(self, centroids: Tensor, origin: Tensor) -> None:
        self._dim = centroids.shape[1]
        self._num = len(centroids)
        centred = centroids.double() - origin.double()
        self._scale = _power_below(2.0**13, 2 * float(centred.abs().max()))
        half = (-2 * self._scale * centred).half()
        self._weight = _padded(half)
        self._rounding = float((half.double() / self._scale + 2 * centred).square().sum(1).max().sqrt())
        self._farthest = float(centred.square().sum(1).max().sqrt())
        base = centred.square().sum(1) + 2 * centred @ origin.double()
        self._lowest = -float(base.min().clamp(max=0))
        self._reach = float(base.abs().max())
        tiles = -(-self._num // _COLUMNS) * _COLUMNS
        self._base = torch.full((tiles,), torch.inf, dtype=torch.float64, device=centroids.device)
        self._base[: self._num] = base

    def nearest(self, rows: Tensor) -> Coarse:
        half, scale, lift, error = self._prepare(rows)
        label = torch.empty(len(rows), dtype=torch.int32, device=rows.device)
        best, second = torch.empty_like(lift), torch.empty_like(lift)
        self._launch(_nearest, half, scale, lift, label, best, second)
        best, second = best / scale, second / scale
        if self._num == 1:
            second.fill_(torch.inf)
        packed = torch.where(second.isfinite(), second, best) * (_COLUMNS * 2.0**-23)
        return Coarse(label.long(), best, second, error + packed)

    def candidates(self, rows: Tensor, limit: Tensor) -> tuple[Tensor, Tensor]:
        half, scale, lift, _ = self._prepare(rows)
        room = _CANDIDATES_PER_ROW * len(rows)
        while True:
            count = torch.zeros(1, dtype=torch.int32, device=rows.device)
            pairs = torch.empty(2, room, dtype=torch.int32, device=rows.device)
            self._launch(_candidates, half, scale, lift, limit * scale, count, pairs, room, self._num)
            if (num := int(count)) <= room:
                return pairs[0, :num].long(), pairs[1, :num].long()
            room = num

    def _launch(self, kernel: Any, half: Tensor, scale: float, lift: Tensor, *rest: Any) -> None:
        """Run `kernel` over all blocks of rows; it gets the rows, centroids, their base, the rows' lift, and `rest`."""
        base = (self._base * scale).float()
        kernel[(triton.cdiv(len(half), _ROWS),)](
            TensorDescriptor.from_tensor(half, [_ROWS, _DEPTH]),
            TensorDescriptor.from_tensor(self._weight, [_COLUMNS, _DEPTH]),
            base,
            lift * scale,
            len(half),
            *rest,
            TILES=len(base) // _COLUMNS,
            DIM=self._weight.shape[1],
            ROWS=_ROWS,
            COLUMNS=_COLUMNS,
            DEPTH=_DEPTH,
            num_warps=_WARPS,
            num_stages=_STAGES,
        )

    def _prepare(self, rows: Tensor) -> tuple[Tensor, float, Tensor, Tensor]:
        """Rows in fp16, the scale of their scores, the lift (B,) of each row, and the error (B,) of its scores."""
        length = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)
        rounding, factor, half = 0.0, 1.0, rows
        if rows.dtype != torch.float16:
            factor = _power_below(2.0**12, float(rows.abs().max()))
            half = (rows * factor).half()
            rounding = torch.linalg.vector_norm(half.float() / factor - rows.float(), dim=1)
        lift = self._lowest + 2 * self._farthest * length
        # A tensor core adds sixteen products at a time to a sum in float32, and may truncate instead of round: a factor of 2.
        unit = (self._dim / 8 + 8) * 2.0**-23
        error = length * self._rounding + 2 * self._farthest * rounding
        error = error + unit * (self._reach + lift + 2 * self._farthest * length)
        return _padded(half), self._scale * factor, lift, error


@triton.jit
def _words(x, c, base, lift, first, k, DIM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """The scores of a tile as words (ROWS, COLUMNS): the low bits are the column, all others the score."""
    column = tl.arange(0, COLUMNS)
    score = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for d in range(0, DIM, DEPTH):
        score = tl.dot(x.load([first, d]), c.load([k, d]).T, score)
    score = tl.maximum(score + (tl.load(base + k + column)[None, :] + lift[:, None]), 0.0)
    return (score.to(tl.int32, bitcast=True) & -COLUMNS) | column[None, :]


@triton.jit
def _rows_of_block(lift, num_rows, ROWS: tl.constexpr):
    """The first row of this program, all its rows (ROWS,), a mask of those that exist, and their lifts."""
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    real = row < num_rows
    return first, row, real, tl.load(lift + row, mask=real, other=0.0)


@triton.jit
def _nearest(
    x,
    c,
    base,
    lift,
    num_rows,
    label_out,
    best_out,
    second_out,
    TILES: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    first, row, real, row_lift = _rows_of_block(lift, num_rows, ROWS)
    best = tl.full((ROWS,), 2147483647, dtype=tl.int32)
    second = tl.full((ROWS,), 2147483647, dtype=tl.int32)
    label = tl.zeros((ROWS,), dtype=tl.int32)
    for k in range(0, TILES * COLUMNS, COLUMNS):
        word = _words(x, c, base, row_lift, first, k, DIM, ROWS, COLUMNS, DEPTH)
        lowest = tl.min(word, axis=1)
        next_lowest = tl.min(tl.where(word == lowest[:, None], 2147483647, word), axis=1)
        second = tl.minimum(tl.minimum(second, next_lowest), tl.maximum(best, lowest))
        label = tl.where(lowest < best, k + (lowest & (COLUMNS - 1)), label)
        best = tl.minimum(best, lowest)
    tl.store(label_out + row, label, mask=real)
    tl.store(best_out + row, (best & -COLUMNS).to(tl.float32, bitcast=True), mask=real)
    tl.store(second_out + row, (second & -COLUMNS).to(tl.float32, bitcast=True), mask=real)


@triton.jit
def _candidates(
    x,
    c,
    base,
    lift,
    num_rows,
    limit,
    count,
    pairs,
    room,
    num_centroids,
    TILES: tl.constexpr,
    DIM: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
):
    first, row, real, row_lift = _rows_of_block(lift, num_rows, ROWS)
    row_limit = tl.load(limit + row, mask=real, other=-1.0)
    column = tl.arange(0, COLUMNS)
    for k in range(0, TILES * COLUMNS, COLUMNS):
        word = _words(x, c, base, row_lift, first, k, DIM, ROWS, COLUMNS, DEPTH)
        near = ((word & -COLUMNS).to(tl.float32, bitcast=True) <= row_limit[:, None]) & (k + column < num_centroids)[None, :]
        slot = tl.atomic_add(count + tl.zeros((ROWS, COLUMNS), dtype=tl.int32), 1, mask=near)
        fits = near & (slot < room)
        tl.store(pairs + slot, tl.broadcast_to(row[:, None], (ROWS, COLUMNS)), mask=fits)
        tl.store(pairs + room + slot, tl.broadcast_to((k + column)[None, :], (ROWS, COLUMNS)), mask=fits)


def _padded(half: Tensor) -> Tensor:
    """`half` (M, D) with zero columns appended so that rows begin at multiples of 16 bytes, as hardware tile loads need."""
    return torch.nn.functional.pad(half, (0, -half.shape[1] % 8)).contiguous()


def _power_below(goal: float, value: float) -> float:
    """The largest power of two whose product with `value` is at most `goal`; 1 for 0 and infinity. Its products are exact."""
    return 2.0 ** math.floor(math.log2(goal / value)) if 0 < value < math.inf else 1.0
