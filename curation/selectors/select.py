"""Selectors: which rows of a pool to train on. One module each, from its paper; all are called alike."""

from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol

from curation.base import rng
from curation.selectors.config import SelectConfig
from curation.selectors.selection import Pool, Selection


class Selector(Protocol):
    """Chooses `budget` of the rows that are available, or all there are; `rng_key` is the random key (`rng.key`)."""

    def __call__(self, config: Any, pool: Pool, budget: int, *, rng_key: int) -> Selection: ...


def select(config: SelectConfig, pool: Pool, *, rng_key: int) -> Selection:
    """What `config` says, made of what the selections that come before it left. Budgets are shares of the whole pool."""
    counts = {"pool": pool.num_rows, "available": pool.num_available}
    for number, before in enumerate(config.after):
        left = _selector(before)(before, pool, before.rows(pool.num_rows), rng_key=rng.key(rng_key, "after", number))
        pool = pool.chosen(left.rows)
        counts[f"after {left.reason}"] = len(left.rows)
    made = _selector(config)(config, pool, config.rows(pool.num_rows), rng_key=rng_key)
    return replace(made, counts={**counts, **made.counts, "selected": len(made.rows)})


def _selector(config: SelectConfig) -> Selector:
    """The module called like the strategy. Imported when it is asked for, because some load torch."""
    found: Selector = import_module(f"curation.selectors.{config.strategy}").select
    return found
