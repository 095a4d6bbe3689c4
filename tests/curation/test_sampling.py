from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import rng, sampling
from curation.hierarchy import ClusterHierarchy, Level, hierarchical_kmeans
from curation.sampling import balanced, random, water_fill
from curation.source import ArraySource


def literal_water_fill(sizes: np.ndarray, target: int) -> int:
    """The cap of Vo et al.: the largest c with sum of min(size, c) no more than the target."""
    return max(c for c in range(int(sizes.max()) + 1) if np.minimum(sizes, c).sum() <= target)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_water_filling_is_that_of_the_paper_in_every_group(groups: list[list[int]], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, sum(sizes))) for sizes in groups]
    offsets = np.cumsum([0, *(len(sizes) for sizes in groups)])
    amounts = water_fill(np.concatenate(groups).astype(int), offsets, np.array(targets), stream=1)
    for sizes, target, start, end in zip(map(np.array, groups), targets, offsets, offsets[1:], strict=False):
        mine = amounts[start:end]
        cap = literal_water_fill(sizes, target)
        assert mine.sum() == target
        assert (mine <= sizes).all()
        extra = mine - np.minimum(sizes, cap)
        assert set(np.unique(extra)) <= {0, 1}


def hierarchy(num: int, seed: int = 0) -> ClusterHierarchy:
    draws = np.random.default_rng(seed)
    rows = np.concatenate([draws.normal(place, 0.1, (count, 2)) for place, count in ((0, num - num // 5), (5, num // 5))])
    events = hierarchical_kmeans(ArraySource(rows.astype(np.float16)), [max(3, num // 5), 2], stream=1, resampling_steps=0)
    return ClusterHierarchy(tuple(event for event in events if isinstance(event, Level)))


@settings(deadline=None, max_examples=25)
@given(st.integers(10, 200), st.integers(1, 250), st.integers(0, 100))
def test_the_budget_is_met_exactly_without_repeating_a_row(num: int, budget: int, seed: int) -> None:
    for selection in (balanced(hierarchy(num), budget, stream=seed), random(num, budget, stream=seed)):
        assert len(selection.rows) == min(budget, num)
        assert (np.diff(selection.rows) > 0).all()
        assert selection.rows.min() >= 0
        assert selection.rows.max() < num
        assert (selection.repeats == 1).all()


@settings(deadline=None, max_examples=40)
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
        options = {"weights": np.random.default_rng(seed).random(num)}
    selection = balanced(tree, budget, stream=seed, max_repeats=most, **options)
    assert selection.repeats.sum() == min(budget, num * most)
    assert (np.diff(selection.rows) > 0).all()
    assert selection.repeats.min() >= 1
    assert selection.repeats.max() <= most
    times = np.zeros(num, dtype=int)
    times[selection.rows] = selection.repeats
    finest = tree.levels[0]
    for cluster in range(finest.num_clusters):
        mine = times[finest.assignment == cluster]
        assert mine.max() - mine.min() <= 1


@pytest.mark.parametrize(("members", "sign"), [("closest", 1), ("farthest", -1)])
def test_of_each_cluster_the_closest_or_the_farthest(members: Literal["closest", "farthest"], sign: int) -> None:
    tree = hierarchy(500)
    selection = balanced(tree, 150, stream=1, members=members)
    finest = tree.levels[0]
    for cluster in range(finest.num_clusters):
        mine = np.flatnonzero(finest.assignment == cluster)
        taken = np.isin(mine, selection.rows)
        distance = sign * finest.squared_distance[mine]
        if taken.any() and not taken.all():
            assert distance[taken].max() <= distance[~taken].min()


def test_weights_decide_how_often_a_row_is_taken() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (4000, 2)).astype(np.float16)
    events = hierarchical_kmeans(ArraySource(rows), [4], stream=1, resampling_steps=0)
    tree = ClusterHierarchy(tuple(event for event in events if isinstance(event, Level)))
    weights = np.where(np.arange(4000) % 2, 9.0, 1.0)
    taken = balanced(tree, 400, stream=1, weights=weights).rows % 2
    assert 0.85 < taken.mean() < 0.95


def test_rows_are_taken_alike_however_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = hierarchy(3000)
    whole = [balanced(tree, budget, stream=1).rows for budget in (7, 600, 2500)]
    monkeypatch.setattr(sampling, "_BLOCK", 97)
    monkeypatch.setattr(sampling, "_CANDIDATES", 50)
    for rows, budget in zip(whole, (7, 600, 2500), strict=True):
        assert np.array_equal(balanced(tree, budget, stream=1).rows, rows)


def test_clusters_that_drew_too_few_candidates_are_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tickets that are all large leave every cluster short at first."""
    tree = hierarchy(400)
    real = rng.tickets
    monkeypatch.setattr(rng, "tickets", lambda *args: real(*args) // 2 + np.uint32(2**31))
    assert len(balanced(tree, 100, stream=1).rows) == 100


def test_exhausted_clusters_are_counted() -> None:
    tree = hierarchy(100)
    counts = balanced(tree, 100, stream=1).counts["exhausted"]
    assert counts == {"level_1": tree.levels[0].num_clusters, "level_2": 2}
    assert balanced(tree, 2, stream=1).counts["exhausted"]["level_2"] == 0


def test_the_budget_is_even_over_coarse_clusters_and_random_is_not() -> None:
    tree = hierarchy(500)
    coarse = tree.labels(2)
    assert np.bincount(coarse[balanced(tree, 100, stream=1).rows]).tolist() == [50, 50]
    assert np.bincount(coarse[random(500, 100, stream=1).rows]).max() > 65


def test_seeds_decide_and_repeat() -> None:
    tree = hierarchy(300)
    first = balanced(tree, 60, stream=1).rows
    assert np.array_equal(first, balanced(tree, 60, stream=1).rows)
    assert not np.array_equal(first, balanced(tree, 60, stream=2).rows)
