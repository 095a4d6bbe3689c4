import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.sampling import water_fill


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
