import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base import rng
from curation.base.errors import DataError
from curation.selectors.config import SensitivityConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool
from curation.selectors.sensitivity import chances, fixed_size
from tests.curation.selectors.helpers import check_promises, hierarchy, promises


@settings(max_examples=30)
@promises
def test_promises(kind: str, num: int, seed: int, budget: int) -> None:
    check_promises(SensitivityConfig(budget=budget), kind, num, seed)
    scores = np.random.default_rng(seed).random(num)
    check_promises(SensitivityConfig(budget=budget, power=1, coefficient=0.5), kind, num, seed, scores=scores)


def literal_chances(mass: np.ndarray, num: int) -> np.ndarray:
    """min(1, t * mass), t found by halving an interval."""
    low, high = 0.0, num / mass[mass > 0].min() + 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(1, middle * mass).sum() < num else (low, middle)
    return np.minimum(1, high * mass)


@given(st.lists(st.floats(0.01, 1e4), min_size=1, max_size=30), st.data())
def test_chances_are_in_proportion_to_mass_up_to_one(mass: list[float], data: st.DataObject) -> None:
    num = data.draw(st.integers(0, len(mass)))
    chance = chances(np.array(mass), num)
    assert chance.sum() == pytest.approx(num)
    assert chance == pytest.approx(literal_chances(np.array(mass), num), rel=1e-6, abs=1e-9)


def test_rows_without_mass_share_what_the_others_leave() -> None:
    assert chances(np.array([0, 3, 0, 1e-9, 0]), 2).tolist() == [0, 1, 0, 1, 0]
    assert chances(np.array([0, 3, 0, 1e-9, 0, 0]), 4).tolist() == [0.5, 1, 0.5, 1, 0.5, 0.5]
    assert chances(np.zeros(4), 1).tolist() == [0.25] * 4
    assert chances(np.zeros(4), 4).tolist() == [1] * 4


def test_every_place_is_drawn_with_its_chance() -> None:
    mass = np.array([0.0, 1, 1, 2, 3, 4, 5, 6, 50, 2, 2, 7])
    chance = chances(mass, 5)
    times, pairs, trials = np.zeros(12), 0, 3000
    for trial in range(trials):
        drawn = fixed_size(chance, rng.tickets(rng.key(trial), 0, 12), rng.key(trial, "start"))
        assert len(set(drawn.tolist())) == 5
        times[drawn] += 1
        pairs += {1, 2} <= set(drawn.tolist())
    error = np.sqrt(chance * (1 - chance) / trials)
    assert (np.abs(times / trials - chance) <= 4.5 * error).all()
    # In the order of rows, two small chances side by side never are both in.
    assert pairs > 0


@settings(max_examples=20)
@given(st.integers(1, 20000), st.integers(0, 3), st.integers(0, 100))
def test_chances_near_one_draw_no_place_twice(num: int, fewer: int, seed: int) -> None:
    chance = chances(np.random.default_rng(seed).choice([1, 1 + 1e-15, 0.1], num), max(num - fewer, 0))
    drawn = fixed_size(chance, rng.tickets(seed, 0, num), seed)
    assert len(np.unique(drawn)) == max(num - fewer, 0)


@pytest.mark.parametrize("start", [0, 1])
@pytest.mark.parametrize("chance", [[1 - 2**-53, 1 - 1e-9], [1 - 1e-9, 1 - 2**-53], [0.5, 1 - 2**-53, 0.5 - 1e-12]])
def test_rounding_draws_no_place_twice(start: float, chance: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Two points in one place, or one past the end, take a start closer to 0 or 1 than chance will find."""
    monkeypatch.setattr(rng, "uniform", lambda *_: np.full((1, 1), start))
    drawn = fixed_size(np.array(chance), np.arange(len(chance), dtype=np.uint32), 1)
    assert len(np.unique(drawn)) == 2


def test_a_weighted_mean_over_the_selection_is_that_of_the_pool() -> None:
    tree = hierarchy(400)
    distance = tree.levels[0].squared_distance.astype(np.float64)
    value = distance / distance.mean() + np.random.default_rng(0).random(400)
    mean = value[distance > 0].mean()  # of the rows that can be drawn: those that are no centroid
    weighted, plain = [], []
    for seed in range(300):
        selection = select(SensitivityConfig(budget=80), Pool(hierarchy=tree), rng_key=seed)
        assert selection.weights is not None
        assert selection.weights.mean() == pytest.approx(1)
        weighted.append((selection.weights * value[selection.rows]).mean())
        plain.append(value[selection.rows].mean())
    error = np.std(weighted) / np.sqrt(300)
    # A ratio of unbiased sums is biased by the order of its variance.
    assert abs(np.mean(weighted) - mean) < 4 * error + np.var(weighted)
    assert abs(np.mean(plain) - mean) > 20 * error


@pytest.mark.parametrize(("coefficient", "power"), [(1, 2), (3, 1), (0, 2)])
def test_mass_is_the_score_at_the_centre_and_the_distance_to_it(coefficient: float, power: float) -> None:
    tree = hierarchy(300)
    level = tree.levels[0]
    scores = np.random.default_rng(0).random(300)
    mass = np.empty(300)
    for row in range(300):
        mates = np.flatnonzero(level.assignment == level.assignment[row])
        centre = min(mates, key=lambda mate: level.squared_distance[mate])
        mass[row] = scores[centre] + coefficient * np.sqrt(level.squared_distance[row]) ** power
    config = SensitivityConfig(budget=50, coefficient=coefficient, power=power)
    selection = select(config, Pool(hierarchy=tree, scores=scores), rng_key=1)
    expected = 1 / literal_chances(mass, 50)[selection.rows]
    assert selection.weights == pytest.approx(expected / expected.mean(), rel=1e-4)
    assert selection.counts["certain"] == np.count_nonzero(literal_chances(mass, 50) >= 1)


def test_a_centre_counts_even_if_it_is_not_available() -> None:
    tree = hierarchy(300)
    level = tree.levels[0]
    mates = np.flatnonzero(level.assignment == level.assignment[0])
    centre = mates[np.argmin(level.squared_distance[mates])]
    scores = np.zeros(300)
    scores[centre] = 1
    pool = Pool(hierarchy=tree, scores=scores, available=np.arange(300) != centre)
    selection = select(SensitivityConfig(budget=len(mates) - 1, coefficient=0), pool, rng_key=1)
    assert selection.rows.tolist() == sorted(set(mates.tolist()) - {centre})


def test_scores_below_zero_are_refused() -> None:
    with pytest.raises(DataError, match="cannot be negative"):
        select(SensitivityConfig(budget=5), Pool(hierarchy=hierarchy(50), scores=np.full(50, -1.0)), rng_key=1)
