"""The rows that can be selected, and the rows that were."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from curation.base.errors import ConfigError
from curation.embeddings.source import EmbeddingSource
from curation.levels import ClusterHierarchy


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows to train on."""

    rows: np.ndarray
    """(S,) int64: ascending indices into the rows of the pool."""
    repeats: np.ndarray
    """(S,) int32: number of times an epoch shows each row."""
    reason: str
    """The rule that selected them."""
    counts: dict[str, Any]
    """Statistics of the rule, as plain JSON values."""
    weights: np.ndarray | None = None
    """(S,) float32: weight of each row in a loss that estimates the loss over the whole pool; None: all equal."""
    per_epoch: int | None = None
    """Number of rows that one epoch shows, drawn anew for each epoch; None: all of them."""

    @classmethod
    def of(cls, rows: np.ndarray, reason: str, **counts: Any) -> "Selection":
        """A selection of each of `rows` (S,), in any order, once."""
        return cls(rows=np.sort(rows), repeats=np.ones(len(rows), dtype=np.int32), reason=reason, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """N rows to select from, and what selectors may look at; a selector that needs an input that is None raises ConfigError."""

    hierarchy: ClusterHierarchy
    """Clusters of the rows."""
    available: np.ndarray | None = None
    """(N,) bool: the rows that may be selected; None: all."""
    embeddings: EmbeddingSource | None = None
    """Embeddings (N, D) of the rows."""
    queries: EmbeddingSource | None = None
    """Embeddings (Q, D) of examples to which similar rows are to be retrieved."""
    scores: np.ndarray | None = None
    """(N,) float: a number per row from outside, such as a loss or a quality."""

    @property
    def num_rows(self) -> int:
        return len(self.hierarchy.levels[0].assignment)

    @property
    def num_available(self) -> int:
        return self.num_rows if self.available is None else int(np.count_nonzero(self.available))

    def available_rows(self) -> np.ndarray:
        """(A,) int64: ascending indices of the available rows."""
        return np.arange(self.num_rows) if self.available is None else np.flatnonzero(self.available)

    def restricted(self, rows: np.ndarray) -> "Pool":
        """The same pool with only `rows` (S,) available."""
        available = np.zeros(self.num_rows, dtype=bool)
        available[rows] = True
        return replace(self, available=available)

    def need_embeddings(self) -> EmbeddingSource:
        """The embeddings of the rows; ConfigError if there are none."""
        if self.embeddings is None:
            raise ConfigError("This selector compares rows and needs their embeddings, but none were given.")
        return self.embeddings

    def need_queries(self) -> EmbeddingSource:
        """The embeddings of the queries; ConfigError if there are none."""
        if self.queries is None:
            raise ConfigError(
                "This selector retrieves rows similar to queries and needs their embeddings, but none were given."
            )
        return self.queries

    def need_scores(self) -> np.ndarray:
        """The scores of the rows (N,); ConfigError if there are none."""
        if self.scores is None:
            raise ConfigError("This selector needs a score for every row, but none were given.")
        return self.scores
