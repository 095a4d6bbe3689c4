"""What was chosen."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows to train on."""

    rows: np.ndarray
    """(S,) int64: ascending indices into the rows that were offered."""
    repeats: np.ndarray
    """(S,) int32: how often an epoch shows each of them."""
    reason: str
    """The rule that chose them."""
    counts: dict[str, Any]
    """How many rows entered and left each rule, and what else it has to tell."""
