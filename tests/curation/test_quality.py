import numpy as np
import pytest

from curation.quality import rankme, size_entropy, total_variation_from_uniform, uniformity


def test_total_variation_by_hand() -> None:
    assert total_variation_from_uniform(np.array([5, 5, 5, 5])) == 0
    assert total_variation_from_uniform(np.array([4, 0])) == 0.5
    assert total_variation_from_uniform(np.array([3, 1])) == 0.25


def test_size_entropy_by_hand() -> None:
    assert size_entropy(np.array([2, 2, 2])) == pytest.approx(1)
    assert size_entropy(np.array([1, 3])) == pytest.approx(-(0.25 * np.log(0.25) + 0.75 * np.log(0.75)) / np.log(2))


def test_rankme_counts_equal_directions() -> None:
    assert rankme(np.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(np.ones((50, 6))) == pytest.approx(1, abs=0.01)


def test_uniformity_prefers_spread() -> None:
    draws = np.random.default_rng(0).standard_normal((200, 8))
    assert uniformity(draws) < uniformity(draws + 5) < 0
