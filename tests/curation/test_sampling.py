import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

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
