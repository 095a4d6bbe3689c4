"""What can be chosen from, and what was chosen."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from curation.base.errors import ConfigError
from curation.embeddings.source import EmbeddingSource
from curation.kmeans.levels import ClusterHierarchy


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
    """What else the rule has to tell, as plain JSON values."""
    weights: np.ndarray | None = None
    """(S,) float32: what each row counts in a loss that is to equal the pool's; None: all the same."""
    per_epoch: int | None = None
    """Rows that one epoch shows, drawn anew each time; None: all of them."""

    @classmethod
    def of(cls, rows: np.ndarray, reason: str, **counts: Any) -> "Selection":
        """Each of `rows` (S,), in any order, once."""
        return cls(rows=np.sort(rows), repeats=np.ones(len(rows), dtype=np.int32), reason=reason, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """N rows to choose from, and what a selector may know of them. What it asks for and was not given is a ConfigError."""

    hierarchy: ClusterHierarchy
    """Clusters of the rows."""
    available: np.ndarray | None = None
    """(N,) bool: the rows that may still be chosen; None: all."""
    embeddings: EmbeddingSource | None = None
    """The rows' embeddings, (N, D)."""
    queries: EmbeddingSource | None = None
    """Embeddings (Q, D) of what rows alike are wanted for."""
    scores: np.ndarray | None = None
    """(N,) float: a number a row from outside, such as a loss or a quality."""

    @property
    def num_rows(self) -> int:
        return len(self.hierarchy.levels[0].assignment)

    @property
    def num_available(self) -> int:
        return self.num_rows if self.available is None else int(np.count_nonzero(self.available))

    def available_rows(self) -> np.ndarray:
        """(A,) int64: ascending."""
        return np.arange(self.num_rows) if self.available is None else np.flatnonzero(self.available)

    def chosen(self, rows: np.ndarray) -> "Pool":
        """The same pool, of which only `rows` (S,) are left."""
        left = np.zeros(self.num_rows, dtype=bool)
        left[rows] = True
        return replace(self, available=left)

    def need_embeddings(self) -> EmbeddingSource:
        if self.embeddings is None:
            raise ConfigError("This selector compares embeddings. Give them with --embeddings.")
        return self.embeddings

    def need_queries(self) -> EmbeddingSource:
        if self.queries is None:
            raise ConfigError(
                "This selector looks for what is like some examples. Put these in a folder named query in the source, or give "
                "their embeddings with --queries."
            )
        return self.queries

    def need_scores(self) -> np.ndarray:
        if self.scores is None:
            raise ConfigError("This selector needs a number for every row. Give them with --scores, a .npy array.")
        return self.scores
