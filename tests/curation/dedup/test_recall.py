import numpy as np

from curation.dedup.neighbours import Pairs
from curation.dedup.recall import brute_force, covered
from curation.embeddings.source import ArraySource


def rows_with_copies() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32)
    rows[200:210] = rows[:10]
    return rows


def test_brute_force_finds_every_pair_of_the_rows_asked_for() -> None:
    rows = rows_with_copies()
    squared = ((rows[:, None].astype(np.float64) - rows) ** 2).sum(2)
    queries = np.array([3, 50, 203, 299])
    pairs = brute_force(ArraySource(rows, block_rows=70), queries, 0.7)
    expected = {(min(q, o), max(q, o)) for q in queries for o in np.flatnonzero(squared[q] <= 0.49) if o != q}
    assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == expected
    assert (3, 203) in expected
    assert np.allclose(pairs.squared, squared[pairs.first, pairs.second], atol=1e-5)


def test_a_pair_is_covered_by_its_edge_or_by_those_of_equal_rows() -> None:
    first, second = np.array([0, 0, 3]), np.array([1, 2, 4])
    same = np.array([True, False, False])
    pairs = Pairs(np.array([0, 1, 0, 3, 1, 5, 2]), np.array([1, 2, 2, 4, 3, 6, 9]), np.zeros(7, dtype=np.float32))
    assert covered(first, second, same, pairs).tolist() == [True, True, True, True, False, False, False]
    none = np.empty(0, dtype=np.int64)
    assert not covered(none, none, none.astype(bool), pairs).any()
