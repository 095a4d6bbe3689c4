from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from curation.sampling.allocation import apportion, water_fill


def literal_water_fill(sizes: np.ndarray, target: int) -> int:
    """The cap of Vo et al.: the largest c with sum of min(size, c) no more than the target."""
    return max(c for c in range(int(sizes.max()) + 1) if np.minimum(sizes, c).sum() <= target)


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=6), st.data())
def test_water_filling_is_that_of_the_paper_in_every_group(groups: list[list[int]], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, sum(sizes))) for sizes in groups]
    offsets = np.cumsum([0, *(len(sizes) for sizes in groups)])
    amounts = water_fill(np.concatenate(groups).astype(int), offsets, np.array(targets), rng_key=1)
    for sizes, target, start, end in zip(map(np.array, groups), targets, offsets, offsets[1:], strict=False):
        mine = amounts[start:end]
        cap = literal_water_fill(sizes, target)
        assert mine.sum() == target
        assert (mine <= sizes).all()
        extra = mine - np.minimum(sizes, cap)
        assert set(np.unique(extra)) <= {0, 1}


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 30)), min_size=1, max_size=12), st.integers(0, 200))
def test_apportioned_amounts_fit_and_add_up(groups: list[tuple[int, int]], total: int) -> None:
    shares, sizes = np.array(groups).T
    amounts = apportion(shares, sizes, total)
    assert amounts.sum() == min(total, sizes[shares > 0].sum())
    assert (amounts <= np.where(shares > 0, sizes, 0)).all()
    # Where nobody is full, no one has a whole row more or less than the exact share of what the full ones left.
    room = (amounts < sizes) & (shares > 0)
    if room.any():
        exact = shares * ((amounts.sum() - amounts[~room].sum()) / shares[room].sum())
        assert (np.abs(amounts - exact)[room] < len(groups)).all()
        if room.all():
            assert (np.abs(amounts - exact) < 1).all()


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(0, 300))
def test_largest_remainders_get_what_rounding_down_leaves(shares: list[int], total: int) -> None:
    exact = [Fraction(total * share, sum(shares)) for share in shares]
    literal = [int(part) for part in exact]
    for index in sorted(range(len(shares)), key=lambda i: (int(exact[i]) - exact[i], i))[: total - sum(literal)]:
        literal[index] += 1
    assert apportion(np.array(shares), np.full(len(shares), 10**6), total).tolist() == literal
