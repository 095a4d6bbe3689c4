import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curation.measures.balance import imbalance, kl_from_uniform, share_empty, size_entropy, total_variation_from_uniform

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any).map(np.array)


def test_total_variation_by_hand() -> None:
    assert total_variation_from_uniform(np.array([5, 5, 5, 5])) == 0
    assert total_variation_from_uniform(np.array([4, 0])) == 0.5
    assert total_variation_from_uniform(np.array([3, 1])) == 0.25


def test_size_entropy_by_hand() -> None:
    assert size_entropy(np.array([2, 2, 2])) == pytest.approx(1)
    assert size_entropy(np.array([1, 3])) == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2))


@given(sizes)
def test_imbalance_is_the_mean_size_of_a_rows_cluster(sizes: np.ndarray) -> None:
    of_rows = [size for size in sizes for _ in range(size)]
    assert imbalance(sizes) == pytest.approx(np.mean(of_rows) / np.mean(sizes))
    assert imbalance(np.full(7, 3)) == pytest.approx(1)
    assert imbalance(np.array([9, 0, 0])) == pytest.approx(3)


@given(sizes)
def test_divergence_from_uniform_is_the_sum_of_its_definition(sizes: np.ndarray) -> None:
    expected = 0.0
    for size in sizes:
        if size:
            share = size / sizes.sum()
            expected += share * np.log(share / (1 / len(sizes)))
    assert kl_from_uniform(sizes) == pytest.approx(expected, abs=1e-12)
    assert kl_from_uniform(np.array([0, 0, 8])) == pytest.approx(np.log(3))
    assert min(kl_from_uniform(np.full(num, 3)) for num in range(1, 60)) == 0


def test_empty_clusters_are_counted() -> None:
    assert share_empty(np.array([3, 0, 1, 0])) == 0.5
    assert share_empty(np.array([3, 1])) == 0
