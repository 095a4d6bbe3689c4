"""Selectors: which rows of a pool to train on. One module each, from its paper; all are called alike."""

from dataclasses import replace
from typing import Any, Protocol

from curation import rng
from curation.config import (
    BalancedConfig,
    PrototypicalityConfig,
    RandomConfig,
    RetrievalConfig,
    Rs2Config,
    SasConfig,
    SelectConfig,
    SensitivityConfig,
    TypicalityConfig,
)
from curation.selection import Pool, Selection
from curation.selectors import balanced, prototypicality, random, retrieval, rs2, sas, sensitivity, typicality


class Selector(Protocol):
    """Chooses `budget` of the rows that are available, or all there are; `stream` is the random key (`rng.key`)."""

    def __call__(self, config: Any, pool: Pool, budget: int, *, stream: int) -> Selection: ...


SELECTORS: dict[type, Selector] = {
    BalancedConfig: balanced.select,
    PrototypicalityConfig: prototypicality.select,
    RandomConfig: random.select,
    RetrievalConfig: retrieval.select,
    Rs2Config: rs2.select,
    SasConfig: sas.select,
    SensitivityConfig: sensitivity.select,
    TypicalityConfig: typicality.select,
}


def select(config: SelectConfig, pool: Pool, *, stream: int) -> Selection:
    """What `config` says, made of what the selections that come before it left. Budgets are shares of the whole pool."""
    counts = {"pool": pool.num_rows, "available": pool.num_available}
    for number, before in enumerate(config.after):
        left = SELECTORS[type(before)](before, pool, before.rows(pool.num_rows), stream=rng.key(stream, "after", number))
        pool = pool.chosen(left.rows)
        counts[f"after {left.reason}"] = len(left.rows)
    made = SELECTORS[type(config)](config, pool, config.rows(pool.num_rows), stream=stream)
    return replace(made, counts={**counts, **made.counts, "selected": len(made.rows)})
