"""Sums and products that do not round, so that their order does not matter."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """Rounds values to multiples of a power of two, so coarse that float64 adds up `num_terms` of them exactly.

    Then a sum is the same, bit for bit, on any number of workers, in any order, and with a GPU's atomic additions. Values may
    be up to eight times `largest`; beyond that sums are still right, but may depend on the order in their last bits.
    """

    largest: float
    num_terms: int

    def __call__(self, values: Tensor) -> Tensor:
        """The values as float64 on the grid."""
        bits = math.ceil(math.log2(max(self.largest, 1e-30))) + 3 + math.ceil(math.log2(self.num_terms + 1))
        # Added to so large a number, all that is finer than the grid is rounded away.
        large = 1.5 * 2.0**bits
        return values.double().add_(large).sub_(large)


def for_products(vectors: Tensor) -> Tensor:
    """Vectors (M, D) as float64, rounded so that the product x·y of any two is exact, in whatever order it is summed.

    A sum of D products of two b-bit numbers fits into the 53 bits of float64 while 2 b + log2 D does: b is 21 for D = 768,
    counted from the largest number of the vector.
    """
    bits = (52 - math.ceil(math.log2(vectors.shape[1]))) // 2
    wide = vectors.double()
    largest = wide.abs().amax(1, keepdim=True)
    power = largest / torch.frexp(largest).mantissa  # of two, and exact, which pow() need not be
    unit = torch.where(largest > 0, power, 1.0) * 2.0**-bits
    return (wide / unit).round_().mul_(unit)
