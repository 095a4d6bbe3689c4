"""Settings of selection: a class for each selector, and their union."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.base.config import Config


class _Selector(Config):
    alternatives = (frozenset({"fraction", "budget"}),)

    fraction: float | None = Field(default=None, gt=0, le=1)
    """Rows to select, as a share of the pool. Give this or `budget`."""
    budget: int | None = Field(default=None, ge=1)
    """Number of rows to select. Give this or `fraction`."""
    after: tuple["SelectConfig", ...] = ()
    """Selections to make first, in this order; each chooses from the rows that the one before it selected."""

    @property
    def needs(self) -> frozenset[str]:
        """Inputs that this selection and those in `after` cannot do without, of "embeddings", "queries" and "scores"."""
        return self._inputs().union(*(earlier.needs for earlier in self.after))

    def _inputs(self) -> frozenset[str]:
        """Inputs that this selector itself cannot do without."""
        return frozenset()

    @model_validator(mode="after")
    def _one_budget(self) -> "_Selector":
        if (self.fraction is None) == (self.budget is None):
            raise ValueError("set exactly one of fraction and budget, for example fraction=0.5")
        return self

    @model_validator(mode="after")
    def _flat(self) -> "_Selector":
        if any(earlier.after for earlier in self.after):
            raise ValueError("selections in `after` cannot have an `after` of their own: list them all in one")
        if last_only := [earlier.strategy for earlier in self.after if earlier.strategy in ("rs2", "sensitivity")]:
            raise ValueError(
                f"{last_only[0]} must come last: in `after` only the selected rows count, and its weights or its number of "
                "rows per epoch would be lost"
            )
        return self

    def rows(self, pool_size: int) -> int:
        """The number of rows to select from a pool of `pool_size` rows, at least one."""
        return self.budget if self.budget is not None else max(1, round(pool_size * (self.fraction or 1)))


class BalancedConfig(_Selector):
    """Hierarchical balanced sampling: the budget spread evenly over clusters, from the coarsest level down."""

    strategy: Literal["balanced"] = "balanced"
    members: Literal["random", "closest", "farthest", "weighted"] = "random"
    """Rows to take from a finest cluster: random ones, those closest to its centroid, those farthest from it, or random ones
    with probability in proportion to their scores (weighted)."""
    max_repeats: int = Field(default=1, ge=1)
    """Maximum number of times a row is shown per epoch, where its clusters have fewer rows than their share of the budget."""

    def _inputs(self) -> frozenset[str]:
        return frozenset({"scores"} if self.members == "weighted" else ())


class RandomConfig(_Selector):
    """Uniform sampling without replacement: the baseline for all other selectors."""

    strategy: Literal["random"] = "random"


class Rs2Config(_Selector):
    """Repeated random sampling: every epoch shows a fresh random subset of that many rows."""

    strategy: Literal["rs2"] = "rs2"


class PrototypicalityConfig(_Selector):
    """The rows farthest from their centroids, or the closest."""

    strategy: Literal["prototypicality"] = "prototypicality"
    keep: Literal["easy", "hard"] = "hard"
    """Hard rows are far from their centroid, easy ones close to it. Easy ones serve better where rows are few."""


class RetrievalConfig(_Selector):
    """The rows most similar to a set of queries, for example of a small curated dataset."""

    strategy: Literal["retrieval"] = "retrieval"
    expand: Literal["neighbours", "clusters"] = "neighbours"
    """Take the nearest rows of every query, or random rows of the clusters that the queries fall into, which suits few
    queries."""

    def _inputs(self) -> frozenset[str]:
        return frozenset({"queries"} if self.expand == "clusters" else {"queries", "embeddings"})


class SasConfig(_Selector):
    """The rows most similar to the rest of their latent class (Joshi and Mirzasoleiman, ICML 2023)."""

    strategy: Literal["sas"] = "sas"
    level: int | None = Field(default=None, ge=1)
    """Level of the hierarchy whose clusters are the latent classes, from 1, the finest. Default: the coarsest."""

    def _inputs(self) -> frozenset[str]:
        return frozenset({"embeddings"})


class SensitivityConfig(_Selector):
    """Random rows with probability in proportion to a bound on their loss, and weights that correct for the probability."""

    strategy: Literal["sensitivity"] = "sensitivity"
    coefficient: float = Field(default=1, ge=0)
    """Factor of the distance term: how much the loss may change per unit of distance to the centroid, to the power `power`.
    Scores, if given, must be losses in the same unit."""
    power: float = Field(default=2, gt=0, le=8)
    """Exponent applied to the distance to the centroid."""


class TypicalityConfig(_Selector):
    """The rows of every finest cluster that lie where it is densest."""

    strategy: Literal["typicality"] = "typicality"
    neighbours: int = Field(default=20, ge=1)
    """Number of nearest rows of the same cluster whose mean distance measures density; all other rows in a smaller cluster."""

    def _inputs(self) -> frozenset[str]:
        return frozenset({"embeddings"})


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
