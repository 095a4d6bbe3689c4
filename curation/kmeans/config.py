"""Settings of clustering."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.base.config import Config


class ClusterConfig(Config):
    """Hierarchical k-means over the embeddings of the pool."""

    operational = frozenset({"workers", "engine"})

    levels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1000, 100), min_length=1)
    """Number of clusters per level, finest first. A level has at most as many clusters as there are distinct items below it."""
    resampling_steps: int = Field(default=10, ge=0)
    """Number of times each level is refitted on equally many items per cluster; 0 is plain hierarchical k-means."""
    splits: int = Field(default=1, ge=1)
    """Make the finest level by clustering into that many times fewer clusters and splitting each into that many parts: for
    millions of clusters. Resampling then refits the clusters before they are split."""
    max_iterations: int = Field(default=50, ge=1)
    """Maximum number of Lloyd iterations of one k-means."""
    tolerance: float = Field(default=1e-3, ge=0)
    """k-means stops when moving the centroids would lower the inertia by less than this share of it."""
    normalize: bool = True
    """Scale embeddings to unit length first, so that Euclidean distance orders like cosine similarity."""
    spherical: bool = False
    """Keep centroids at unit length too: k-means by cosine. Needs `normalize`."""
    workers: int = Field(default=1, ge=1)
    """Number of processes that share the rows; the result does not depend on it."""
    engine: Literal["torch", "faiss"] = "torch"
    """Library that finds nearest centroids: torch with our own GPU kernels, or faiss on the CPU or on all GPUs of the machine.
    The result does not depend on it."""

    @model_validator(mode="after")
    def _spherical_is_normalized(self) -> "ClusterConfig":
        if self.spherical and not self.normalize:
            raise ValueError("spherical=true needs normalize=true: cosine similarity compares directions only")
        return self

    @model_validator(mode="after")
    def _splits_divide(self) -> "ClusterConfig":
        if self.levels[0] % self.splits:
            raise ValueError(f"levels[0] must be a multiple of splits; found {self.levels[0]} and {self.splits}")
        return self

    @model_validator(mode="after")
    def _levels_descend(self) -> "ClusterConfig":
        if any(upper >= lower for lower, upper in pairwise(self.levels)):
            raise ValueError(f"levels must descend, finest first, for example [1000, 100]; found {list(self.levels)}")
        return self
