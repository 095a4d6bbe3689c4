"""The contract of a modality: what is looked at in a sample, how it is stored, and how people see it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from curation.base.errors import DataError

MODALITIES = {"image": "pipeline.modalities.image:Images"}
"""The module and class of each modality, by name."""
SIGNATURE = "signature"
"""The index column by which near-duplicates are found without an encoder; null where there is nothing to compare."""

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Indices (E,), other indices (E,), and the distance of their signatures (E,)."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a sample is set aside."""

    reason: str
    """One of a few kinds, by which rejects are counted."""
    detail: str = ""
    """The particulars."""


@dataclass(frozen=True)
class Probe:
    """What was seen in the bytes of one sample."""

    columns: Mapping[str, Any] = field(default_factory=dict)
    """A value for each column of the modality; none where there is a problem."""
    problem: Problem | None = None


class Modality(Protocol):
    """What the samples of a dataset are. Instances hold settings of the shard stage, and travel to its processes."""

    columns: pa.Schema
    """The columns that this modality adds to an index, `SIGNATURE` among them."""

    def probe(self, content: bytes) -> Probe:
        """Look at the bytes of a sample: its columns, or the reason to set it aside."""
        ...

    def stored(self, content: bytes) -> bytes:
        """The bytes that are written into a shard for these; what is seen in them is the same."""
        ...

    def near_signatures(self, signatures: np.ndarray, max_distance: int) -> Iterator[Pairs]:
        """All pairs of signatures (N,) that differ by at most `max_distance`."""
        ...

    def detail(self, columns: pa.Table) -> np.ndarray:
        """(N,) int64: how much each of N rows with the columns of the modality shows; the largest duplicate can be kept."""
        ...

    def picture(self, content: bytes) -> np.ndarray | None:
        """(H, W, 3) uint8 for people; None if there is nothing to see."""
        ...


def open_modality(name: str, **settings: Any) -> Modality:
    """The modality of that name. Raises DataError if there is none."""
    if name not in MODALITIES:
        raise DataError(f"There is no modality {name!r}, only {', '.join(sorted(MODALITIES))}. Add it to MODALITIES first.")
    module, _, cls = MODALITIES[name].partition(":")
    modality: Modality = getattr(import_module(module), cls)(**settings)
    return modality
