"""Pseudo-labels, and what makes them."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from curation.levels import ClusterHierarchy

Block = tuple[int, dict[str, np.ndarray]]
"""A first row, and for each column the labels (B,) int32 of the rows from there on."""


class Blocks(Protocol):
    """Makes the blocks anew, in the order of rows, whenever it is called."""

    def __call__(self) -> Iterator[Block]: ...


@dataclass(frozen=True, kw_only=True)
class Labels:
    """Labels of N rows in one or several columns, never all in memory."""

    num_classes: dict[str, int]
    """Classes of each column; labels are in [0, number of classes)."""
    blocks: Blocks


class Labeler(Protocol):
    """Labels the rows of a clustering."""

    def __call__(self, config: Any, hierarchy: ClusterHierarchy) -> Labels: ...


def label(config: Any, hierarchy: ClusterHierarchy) -> Labels:
    """The labels that `config` describes, made by the module that is named like its labeler."""
    labeler: Labeler = import_module(f"curation.labelers.{config.labeler}").label
    return labeler(config, hierarchy)
