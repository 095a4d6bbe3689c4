from itertools import combinations, permutations
from math import e

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base.errors import ConfigError
from curation.embeddings.source import ArraySource
from curation.selectors import sas
from curation.selectors.config import SasConfig
from curation.selectors.sas import greedy
from curation.selectors.select import select
from curation.selectors.selection import Pool
from tests.curation.selectors.helpers import check_promises, example_pool, hierarchy, promises


@settings(max_examples=30)
@promises
def test_promises(kind: str, num: int, seed: int, budget: int) -> None:
    check_promises(SasConfig(budget=budget), kind, num, seed)
    check_promises(SasConfig(budget=budget, level=1), kind, num, seed)


def similarities(rows: np.ndarray) -> np.ndarray:
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.maximum(unit @ unit.T, 0)


def objective(similar: np.ndarray, chosen: set[int]) -> float:
    """F(S) of Joshi and Mirzasoleiman, term by term."""
    return sum(similar[i, j] for i in range(len(similar)) if i not in chosen for j in chosen)


@settings(max_examples=30)
@given(st.integers(1, 25), st.sampled_from(["normal", "copies", "zeros"]), st.data())
def test_every_pick_raises_the_objective_most(num: int, kind: str, data: st.DataObject) -> None:
    draws = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rows = {
        "normal": draws.normal(0.3, 1, (num, 4)),
        "copies": draws.integers(-1, 2, (num, 3)).astype(float),
        "zeros": np.zeros((num, 2)),
    }[kind]
    order = greedy(torch.from_numpy(rows), num).tolist()
    assert sorted(order) == list(range(num))
    similar = similarities(rows)
    chosen: set[int] = set()
    for pick in order:
        gains = {row: objective(similar, chosen | {row}) - objective(similar, chosen) for row in set(range(num)) - chosen}
        best = max(gains.values())
        assert gains[pick] == pytest.approx(best, abs=1e-5)
        # Of equal rows the first.
        assert not any(np.array_equal(rows[row], rows[pick]) for row in gains if row < pick)
        chosen.add(pick)


@settings(max_examples=25)
@given(st.integers(2, 9), st.integers(0, 1000), st.data())
def test_greedy_is_near_the_optimum_of_small_sets(num: int, seed: int, data: st.DataObject) -> None:
    budget = data.draw(st.integers(1, num // 2))
    rows = np.random.default_rng(seed).normal(0.2, 1, (num, 3))
    similar = similarities(rows)
    best = max(objective(similar, set(subset)) for subset in combinations(range(num), budget))
    assert objective(similar, set(greedy(torch.from_numpy(rows), budget).tolist())) >= (1 - 1 / e) * best - 1e-9


def test_every_class_gives_the_same_share() -> None:
    rows, tree = example_pool("blobs", 240)
    pool = Pool(hierarchy=tree, embeddings=ArraySource(rows), available=np.arange(240) % 4 > 0)
    for level, config in ((2, SasConfig(budget=90)), (1, SasConfig(budget=90, level=1))):
        labels = tree.labels(level)
        selection = select(config, pool, rng_key=1)
        for label in range(tree.levels[level - 1].num_clusters):
            members = np.flatnonzero((labels == label) & pool.available)
            taken = np.isin(members, selection.rows)
            assert abs(taken.sum() - len(members) / 2) < 1
            picked = greedy(torch.from_numpy(rows[members]), int(taken.sum())) if taken.any() else []
            assert np.array_equal(members[taken], np.sort(members[picked]))


def test_rows_are_compared_by_direction_only() -> None:
    rows, tree = example_pool("blobs", 120)
    scaled = rows * np.random.default_rng(0).uniform(0.1, 10, (120, 1)).astype(np.float32)
    pools = [Pool(hierarchy=tree, embeddings=ArraySource(array)) for array in (rows, scaled)]
    one, other = (select(SasConfig(budget=40), pool, rng_key=1) for pool in pools)
    assert np.array_equal(one.rows, other.rows)


@pytest.mark.parametrize(("held", "proposed"), [(1, 256), (2**25, 1), (200, 5)])
def test_small_tiles_and_few_proposals_change_nothing(held: int, proposed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    distinct = np.random.default_rng(0).normal(0.3, 1, (70, 100))
    rows = torch.from_numpy(distinct[np.random.default_rng(1).integers(0, 70, 200)])
    whole = greedy(rows, 180)
    monkeypatch.setattr(sas, "_HELD", held)
    monkeypatch.setattr(sas, "_PROPOSED", proposed)
    assert np.array_equal(greedy(rows, 180), whole)


def test_ties_are_not_left_to_rounding() -> None:
    """Rows that are permutations of one another tie; sums in another order must not say otherwise."""
    rows = torch.tensor(list(permutations([0.1, 0.7, 1.3, -0.4, 0.9])))
    order = greedy(rows, 100).tolist()
    assert order[0] == 0
    for columns in ([4, 3, 2, 1, 0], [2, 0, 4, 1, 3]):
        assert greedy(rows[:, columns], 100).tolist() == order


def test_more_equal_rows_than_are_proposed_are_picked_in_order() -> None:
    assert greedy(torch.ones(700, 2), 690).tolist() == list(range(690))


def test_a_level_that_is_not_there_is_refused() -> None:
    pool = Pool(hierarchy=hierarchy(50), embeddings=ArraySource(np.zeros((50, 2))))
    with pytest.raises(ConfigError, match="Set 1 to 2"):
        select(SasConfig(budget=5, level=3), pool, rng_key=1)
