"""Sums and products without rounding, which therefore do not depend on their order."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Multiples of a power of two to which values are rounded, so coarse that float64 adds up `num_terms` of them exactly.

    Then a sum is the same, bit for bit, on any number of workers, in any order, and with a GPU's atomic additions. Values may
    be up to eight times `largest`; beyond that sums are still right, but their last bits may depend on the order.
    """

    largest: float
    """Estimate of the largest absolute value."""
    num_terms: int
    """Number of values that are added up."""

    def __call__(self, values: Tensor) -> Tensor:
        """`values` rounded to the grid, as float64."""
        bits = math.ceil(math.log2(max(self.largest, 1e-30))) + 3 + math.ceil(math.log2(self.num_terms + 1))
        # Adding so large a number rounds away everything finer than the grid.
        large = 1.5 * 2.0**bits
        return values.double().add_(large).sub_(large)


def for_products(vectors: Tensor) -> Tensor:
    """(M, D) float64: `vectors` (M, D) rounded so that the product x·y of any two is exact, in any order of summation.

    A sum of D products of two b-bit numbers fits into the 53 bits of float64 if 2 b + log2 D does: b is 21 for D = 768,
    counted from the largest number of the vector.
    """
    bits = (52 - math.ceil(math.log2(vectors.shape[1]))) // 2
    wide = vectors.double()
    largest = wide.abs().amax(1, keepdim=True)
    power = largest / torch.frexp(largest).mantissa  # a power of two; exact, which pow() need not be
    unit = torch.where(largest > 0, power, 1.0) * 2.0**-bits
    return (wide / unit).round_().mul_(unit)
