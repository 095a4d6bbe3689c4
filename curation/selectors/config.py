"""Settings of selection: a class for each selector, and their union."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.base.config import Config


class _Selector(Config):
    alternatives = (frozenset({"fraction", "budget"}),)

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
