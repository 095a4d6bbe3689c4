from itertools import combinations
from typing import get_args

import numpy as np
import pytest

from curation.base.errors import ConfigError
from curation.dedup.config import DedupConfig
from curation.embeddings.source import ArraySource
from curation.selectors.config import (
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
from curation.selectors.select import select
from curation.selectors.selection import Pool
from tests.curation.selectors.helpers import example_pool

CASES: list[tuple[SelectConfig, set[str]]] = [
    (BalancedConfig(budget=5), set()),
    (BalancedConfig(budget=5, members="closest"), set()),
    (BalancedConfig(budget=5, members="weighted"), {"scores"}),
    (PrototypicalityConfig(budget=5), set()),
    (RandomConfig(budget=5), set()),
    (RetrievalConfig(budget=5), {"queries", "embeddings"}),
    (RetrievalConfig(budget=5, expand="clusters"), {"queries"}),
    (Rs2Config(budget=5), set()),
    (SasConfig(budget=5), {"embeddings"}),
    (SensitivityConfig(budget=5), set()),
    (TypicalityConfig(budget=5), {"embeddings"}),
    (RandomConfig(budget=5, after=(RetrievalConfig(budget=30, expand="clusters"),)), {"queries"}),
    (
        BalancedConfig(budget=5, members="weighted", after=(SasConfig(budget=30), RetrievalConfig(budget=20))),
        {"scores", "embeddings", "queries"},
    ),
]


@pytest.mark.parametrize(("config", "needs"), CASES)
def test_a_selection_needs_exactly_the_inputs_it_says(config: SelectConfig, needs: set[str]) -> None:
    assert config.needs == needs
    rows, hierarchy = example_pool("blobs", 60)
    inputs = {"embeddings": ArraySource(rows), "queries": ArraySource(rows[:3]), "scores": np.arange(60.0)}
    for num in range(len(inputs) + 1):
        for names in combinations(inputs, num):
            pool = Pool(hierarchy=hierarchy, **{name: inputs[name] for name in names})  # type: ignore[arg-type]
            if needs <= set(names):
                assert len(select(config, pool, rng_key=1).rows) >= 5
            else:
                with pytest.raises(ConfigError, match="none were given"):
                    select(config, pool, rng_key=1)


def test_the_needs_of_every_strategy_are_tested() -> None:
    union, _ = get_args(SelectConfig)
    assert {type(config) for config, _ in CASES} == set(get_args(union))


def test_deduplication_needs_what_it_prefers_rows_by() -> None:
    assert DedupConfig().needs == {"embeddings"}
    assert DedupConfig(keep="farthest").needs == {"embeddings"}
    assert DedupConfig(keep="largest").needs == {"embeddings", "samples"}
    assert DedupConfig(keep="scores").needs == {"embeddings", "scores"}
