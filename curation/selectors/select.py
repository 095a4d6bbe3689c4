"""Selection by configuration: the selections in `after` first, then the selector that the strategy names."""

from dataclasses import replace
from importlib import import_module
from typing import Any, Protocol

from curation.base import rng
from curation.selectors.config import SelectConfig
from curation.selectors.selection import Pool, Selection


class Selector(Protocol):
    """A rule that selects `budget` of the available rows, or all if fewer; `rng_key` is the random key (`rng.key`)."""

    def __call__(self, config: Any, pool: Pool, budget: int, *, rng_key: int) -> Selection: ...


def select(config: SelectConfig, pool: Pool, *, rng_key: int) -> Selection:
    """The rows that `config` selects, from those that its earlier selections (`after`) leave available.

    A fraction is a share of the whole pool, also in `after`. Raises ConfigError if an input of `config.needs` is missing.
    """
    counts = {"pool": pool.num_rows, "available": pool.num_available}
    for number, earlier in enumerate(config.after):
        selection = _selector(earlier)(earlier, pool, earlier.rows(pool.num_rows), rng_key=rng.key(rng_key, "after", number))
        pool = pool.restricted(selection.rows)
        counts[f"after {selection.reason}"] = len(selection.rows)
    selection = _selector(config)(config, pool, config.rows(pool.num_rows), rng_key=rng_key)
    return replace(selection, counts={**counts, **selection.counts, "selected": len(selection.rows)})


def _selector(config: SelectConfig) -> Selector:
    """The function `select` of the module named like the strategy; imported on demand, because some modules load torch."""
    selector: Selector = import_module(f"curation.selectors.{config.strategy}").select
    return selector
