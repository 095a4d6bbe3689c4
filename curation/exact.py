"""Sums that do not round, so that their order does not matter."""

import math
from dataclasses import dataclass

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
