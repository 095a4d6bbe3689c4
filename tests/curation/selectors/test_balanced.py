from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from curation.base import rng
from curation.base.errors import ConfigError
from curation.levels import ClusterHierarchy
from curation.sampling import draw as sampling
from curation.selectors.config import BalancedConfig, RandomConfig, Rs2Config, SensitivityConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool, Selection
from tests.curation.selectors.helpers import clustered, hierarchy


def balanced(
    tree: ClusterHierarchy, budget: int, *, rng_key: int, weights: np.ndarray | None = None, **options: Any
) -> Selection:
    config = BalancedConfig(budget=budget, **options)
    return select(config, Pool(hierarchy=tree, scores=weights), rng_key=rng_key)


def random(tree: ClusterHierarchy, budget: int, *, rng_key: int) -> Selection:
    return select(RandomConfig(budget=budget), Pool(hierarchy=tree), rng_key=rng_key)


@settings(max_examples=25)
@given(st.integers(10, 200), st.integers(1, 250), st.integers(0, 100))
def test_the_budget_is_met_exactly_without_repeating_a_row(num: int, budget: int, seed: int) -> None:
    tree = hierarchy(num)
    for selection in (balanced(tree, budget, rng_key=seed), random(tree, budget, rng_key=seed)):
        assert len(selection.rows) == min(budget, num)
        assert (np.diff(selection.rows) > 0).all()
        assert selection.rows.min() >= 0
        assert selection.rows.max() < num
        assert (selection.repeats == 1).all()


@settings(max_examples=40)
@given(
    st.integers(10, 200),
    st.integers(1, 900),
    st.integers(1, 4),
    st.sampled_from(["random", "closest", "farthest", "weighted"]),
    st.integers(0, 100),
)
def test_repeats_meet_the_budget_and_no_row_repeats_before_all_of_its_cluster_are_in(
    num: int, budget: int, most: int, members: str, seed: int
) -> None:
    tree = hierarchy(num)
    options: dict[str, Any] = {"members": members}
    if members == "weighted":
        options["weights"] = np.random.default_rng(seed).random(num)
    selection = balanced(tree, budget, rng_key=seed, max_repeats=most, **options)
    assert selection.repeats.sum() == min(budget, num * most)
    assert (np.diff(selection.rows) > 0).all()
    assert selection.repeats.min() >= 1
    assert selection.repeats.max() <= most
    times = np.zeros(num, dtype=int)
    times[selection.rows] = selection.repeats
    finest = tree.levels[0]
    for cluster in range(finest.num_clusters):
        members = times[finest.assignment == cluster]
        assert members.max() - members.min() <= 1


@pytest.mark.parametrize(("members", "sign"), [("closest", 1), ("farthest", -1)])
def test_of_each_cluster_the_closest_or_the_farthest(members: Literal["closest", "farthest"], sign: int) -> None:
    tree = hierarchy(500)
    selection = balanced(tree, 150, rng_key=1, members=members)
    finest = tree.levels[0]
    for cluster in range(finest.num_clusters):
        members = np.flatnonzero(finest.assignment == cluster)
        taken = np.isin(members, selection.rows)
        distance = sign * finest.squared_distance[members]
        if taken.any() and not taken.all():
            assert distance[taken].max() <= distance[~taken].min()


def test_weights_decide_how_often_a_row_is_taken() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (4000, 2)).astype(np.float16)
    tree = clustered(rows, [4])
    weights = np.where(np.arange(4000) % 2, 9.0, 1.0)
    taken = balanced(tree, 400, rng_key=1, weights=weights, members="weighted").rows % 2
    assert 0.85 < taken.mean() < 0.95


def test_rows_are_taken_alike_however_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = hierarchy(3000)
    whole = [balanced(tree, budget, rng_key=1).rows for budget in (7, 600, 2500)]
    monkeypatch.setattr(sampling, "_BLOCK", 97)
    monkeypatch.setattr(sampling, "_CANDIDATES", 50)
    for rows, budget in zip(whole, (7, 600, 2500), strict=True):
        assert np.array_equal(balanced(tree, budget, rng_key=1).rows, rows)


def test_clusters_that_drew_too_few_candidates_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets that are all large leave every cluster short at first."""
    tree = hierarchy(400)
    real = rng.tickets
    monkeypatch.setattr(rng, "tickets", lambda *args: real(*args) // 2 + np.uint32(2**31))
    assert len(balanced(tree, 100, rng_key=1).rows) == 100


def test_exhausted_clusters_are_counted() -> None:
    tree = hierarchy(100)
    counts = balanced(tree, 100, rng_key=1).counts["exhausted"]
    assert counts == {"level_1": tree.levels[0].num_clusters, "level_2": 2}
    assert balanced(tree, 2, rng_key=1).counts["exhausted"]["level_2"] == 0


def test_the_budget_is_even_over_coarse_clusters_and_random_is_not() -> None:
    tree = hierarchy(500)
    coarse = tree.labels(2)
    assert np.bincount(coarse[balanced(tree, 100, rng_key=1).rows]).tolist() == [50, 50]
    assert np.bincount(coarse[random(tree, 100, rng_key=1).rows]).max() > 65


def test_seeds_decide_and_repeat() -> None:
    tree = hierarchy(300)
    first = balanced(tree, 60, rng_key=1).rows
    assert np.array_equal(first, balanced(tree, 60, rng_key=1).rows)
    assert not np.array_equal(first, balanced(tree, 60, rng_key=2).rows)


def test_rows_that_are_not_available_are_never_taken() -> None:
    tree = hierarchy(300)
    pool = Pool(hierarchy=tree, available=np.arange(300) % 3 > 0)
    for config in (BalancedConfig(budget=150), RandomConfig(budget=150), Rs2Config(budget=150)):
        rows = select(config, pool, rng_key=1).rows
        assert (rows % 3 > 0).all()
        assert len(rows) == (200 if config.strategy == "rs2" else 150)


def test_a_selection_chooses_from_what_the_ones_before_it_left() -> None:
    tree = hierarchy(300)
    first = RandomConfig(budget=120)
    config = BalancedConfig(budget=60, after=(first,))
    selection = select(config, Pool(hierarchy=tree), rng_key=1)
    earlier = select(first, Pool(hierarchy=tree), rng_key=rng.key(1, "after", 0))
    assert len(selection.rows) == 60
    assert np.isin(selection.rows, earlier.rows).all()
    assert selection.counts["after random"] == 120
    assert len(select(replace_budget(config, 200), Pool(hierarchy=tree), rng_key=1).rows) == 120


def test_what_must_come_last_is_refused_before() -> None:
    for before in (Rs2Config(budget=5), SensitivityConfig(budget=5)):
        with pytest.raises(ValidationError, match="must come last"):
            RandomConfig(budget=3, after=(before,))


def replace_budget(config: BalancedConfig, budget: int) -> BalancedConfig:
    return config.model_copy(update={"budget": budget})


def test_what_a_selector_needs_and_has_not_is_said() -> None:
    with pytest.raises(ConfigError, match="needs a score for every row"):
        select(BalancedConfig(budget=10, members="weighted"), Pool(hierarchy=hierarchy(50)), rng_key=1)


def test_rs2_offers_everything_and_shows_a_part() -> None:
    selection = select(Rs2Config(fraction=0.25), Pool(hierarchy=hierarchy(200)), rng_key=1)
    assert selection.rows.tolist() == list(range(200))
    assert selection.per_epoch == 50
