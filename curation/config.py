"""What a user may set about clustering and selection."""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Config(BaseModel):
    """The base of every section: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how fast or where the work is done, never its result: they are no part of a fingerprint."""

    def deciding(self) -> dict[str, object]:
        """The settings that decide the result."""
        dumped = self.model_dump(mode="json", exclude=set(self.operational))
        for name in dumped:
            value = getattr(self, name)
            if isinstance(value, Config):
                dumped[name] = value.deciding()
        return dumped


class ClusterConfig(Config):
    """Hierarchical k-means over the embeddings of the pool."""

    operational = frozenset({"workers", "engine"})

    levels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1000, 100), min_length=1)
    """Clusters per level, finest first. A level is capped at the number of distinct items below it."""
    resampling_steps: int = Field(default=10, ge=0)
    """Refits of each level on equally many rows per cluster; 0 is plain hierarchical k-means."""
    splits: int = Field(default=1, ge=1)
    """Make the finest level by clustering to so many times fewer and splitting each cluster into that many: for millions of
    clusters. Resampling is then of the clusters before they are split."""
    max_iterations: int = Field(default=50, ge=1)
    """Lloyd iterations of one k-means at the most."""
    tolerance: float = Field(default=1e-3, ge=0)
    """k-means stops when moving the centroids would lower the inertia by less than this share of it."""
    normalize: bool = True
    """Scale embeddings to unit length first, so that Euclidean distance orders like cosine similarity."""
    spherical: bool = False
    """Keep centroids at unit length too: k-means by cosine. Needs `normalize`."""
    workers: int = Field(default=1, ge=1)
    """Processes that share the rows; the result does not depend on it."""
    engine: Literal["torch", "faiss"] = "torch"
    """What finds nearest centroids: torch and our own kernels, or faiss on the CPU or all GPUs of the machine. The result does
    not depend on it."""

    @model_validator(mode="after")
    def _spherical_is_normalized(self) -> "ClusterConfig":
        if self.spherical and not self.normalize:
            raise ValueError("spherical needs normalize=true: cosine compares directions only")
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


class DedupConfig(Config):
    """Near-duplicates: by perceptual hashes of the images, and by the cosine similarity of embeddings."""

    similarity: float = Field(default=0.95, gt=0, lt=1)
    """Two rows at least so similar say the same."""
    hash_bits: int | None = Field(default=4, ge=0, le=16)
    """Two images whose perceptual hashes differ in at most so many of 64 bits say the same; null: not looked at."""
    rule: Literal["star", "greedy", "component"] = "star"
    """Which rows go: those near one that stays (star), near any before them (SemDeDup's greedy), or all but one of
    everything connected (component)."""
    keep: Literal["closest", "farthest", "largest", "scores"] = "closest"
    """Prefer the rows closest to their centroid, the typical ones, or the farthest; or the images of most pixels, or the rows
    with the highest scores."""
    protect: bool = True
    """Leave out whatever says the same as a held-out row, too, so that nothing that is measured on is trained on."""
    max_visits: int = Field(default=64, ge=0)
    """Clusters beside its own that a row is compared with at the most; what that costs is reported as recall."""

    @property
    def radius(self) -> float:
        """The Euclidean distance of unit vectors with that similarity."""
        return float((2 - 2 * self.similarity) ** 0.5)


class _Selector(Config):
    fraction: float | None = Field(default=None, gt=0, le=1)
    """Rows to select, as a share of the pool. Give this or `budget`."""
    budget: int | None = Field(default=None, ge=1)
    """Rows to select. Give this or `fraction`."""
    after: tuple["SelectConfig", ...] = ()
    """Selections to make first; each chooses from what the one before left."""

    @model_validator(mode="after")
    def _one_budget(self) -> "_Selector":
        if (self.fraction is None) == (self.budget is None):
            raise ValueError("set exactly one of fraction and budget, for example fraction=0.5")
        return self

    @model_validator(mode="after")
    def _flat(self) -> "_Selector":
        if any(before.after for before in self.after):
            raise ValueError("selections in `after` cannot have an `after` of their own: list them all in one")
        if last := [before.strategy for before in self.after if before.strategy in ("rs2", "sensitivity")]:
            raise ValueError(f"{last[0]} must come last: it says more than which rows are left, which would be lost in `after`")
        return self

    def rows(self, pool: int) -> int:
        """The budget for a pool of so many rows; at least one row."""
        return self.budget if self.budget is not None else max(1, round(pool * (self.fraction or 1)))


class BalancedConfig(_Selector):
    """Hierarchical balanced sampling: the budget spread evenly over clusters, from the coarsest level down."""

    strategy: Literal["balanced"] = "balanced"
    members: Literal["random", "closest", "farthest", "weighted"] = "random"
    """Which rows of a finest cluster: at random, by their distance to its centroid, or with chances by their scores."""
    max_repeats: int = Field(default=1, ge=1)
    """How often a row may count, where its clusters have fewer rows than their share."""


class RandomConfig(_Selector):
    """Uniform sampling: the control."""

    strategy: Literal["random"] = "random"


class Rs2Config(_Selector):
    """Every epoch sees a fresh random subset of that many rows."""

    strategy: Literal["rs2"] = "rs2"


class PrototypicalityConfig(_Selector):
    """The rows farthest from their centroids, or the nearest."""

    strategy: Literal["prototypicality"] = "prototypicality"
    keep: Literal["easy", "hard"] = "hard"
    """Hard rows are far from their centroid, easy ones near. Easy ones serve better where rows are few."""


class RetrievalConfig(_Selector):
    """Rows like the queries."""

    strategy: Literal["retrieval"] = "retrieval"
    expand: Literal["neighbours", "clusters"] = "neighbours"
    """The nearest rows of every query, or random rows of the clusters that queries fall into, for queries that are few."""


class SasConfig(_Selector):
    """The rows most like the rest of their latent class."""

    strategy: Literal["sas"] = "sas"
    level: int | None = Field(default=None, ge=1)
    """Whose clusters are the latent classes, counted from 1, the finest; None: the coarsest."""


class SensitivityConfig(_Selector):
    """Rows with chances by how much they may weigh in a loss, and weights that make up for the chances."""

    strategy: Literal["sensitivity"] = "sensitivity"
    coefficient: float = Field(default=1, ge=0)
    """How much the loss may change with distance. With scores it must be in their unit."""
    power: float = Field(default=2, gt=0, le=8)
    """Of the distance to the centroid."""


class TypicalityConfig(_Selector):
    """The rows of every finest cluster that lie where it is densest."""

    strategy: Literal["typicality"] = "typicality"
    neighbours: int = Field(default=20, ge=1)
    """Whose distances tell how dense it is; in a smaller cluster all others."""


SelectConfig = Annotated[
    BalancedConfig
    | PrototypicalityConfig
    | RandomConfig
    | RetrievalConfig
    | Rs2Config
    | SasConfig
    | SensitivityConfig
    | TypicalityConfig,
    Field(discriminator="strategy"),
]
