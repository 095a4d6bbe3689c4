import numpy as np
import pytest

from curation.embeddings import source
from curation.embeddings.source import ArraySource, groups_of


@pytest.mark.parametrize("held", [2**26, 30, 20, 1])
def test_groups_are_read_in_order_however_many_fit_in_memory(held: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_HELD", held)
    array = np.random.default_rng(0).normal(0, 1, (30, 3)).astype(np.float16)
    rows, offsets = np.random.default_rng(1).permutation(30)[:20], np.array([0, 4, 4, 13, 14, 20])
    found = list(groups_of(ArraySource(array), rows, offsets))
    assert len(found) == 5
    for group, members in enumerate(found):
        assert members.dtype == np.float32
        assert np.array_equal(members, array[rows[offsets[group] : offsets[group + 1]]])


def test_no_groups_are_none() -> None:
    assert list(groups_of(ArraySource(np.zeros((3, 2))), np.empty(0, np.int64), np.array([0]))) == []
