import numpy as np
import pytest

from curation.embeddings.source import ArraySource
from curation.measures.features import coverage, rankme, silhouette, uniformity, vendi_score


def test_rankme_counts_equal_directions() -> None:
    assert rankme(np.eye(6)) == pytest.approx(6, rel=1e-4)
    assert rankme(np.ones((50, 6))) == pytest.approx(1, abs=0.01)


def test_uniformity_prefers_spread() -> None:
    draws = np.random.default_rng(0).standard_normal((200, 8))
    assert uniformity(draws) < uniformity(draws + 5) < 0


def literal_silhouette(rows: np.ndarray, labels: np.ndarray) -> float:
    """Rousseeuw 1987, section 2."""
    scores = []
    for i, label in enumerate(labels):
        others: dict[int, list[float]] = {}
        for j, other in enumerate(labels):
            if i != j:
                others.setdefault(int(other), []).append(float(np.linalg.norm(rows[i] - rows[j])))
        if label not in others:
            scores.append(0.0)
            continue
        a = np.mean(others.pop(int(label)))
        b = min(np.mean(distances) for distances in others.values())
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


def test_silhouette_is_that_of_the_paper() -> None:
    draws = np.random.default_rng(0)
    labels = np.concatenate([draws.integers(0, 4, 40), [7]])  # the last is alone
    rows = draws.standard_normal((41, 3)) + labels[:, None]
    for kept in (rows.astype(np.float16), rows.astype(np.float32), rows):
        assert silhouette(kept, labels) == pytest.approx(literal_silhouette(kept.astype(np.float64), labels), rel=1e-10)


def test_silhouette_of_one_cluster_or_of_lone_rows_is_zero() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 2))
    assert silhouette(rows, np.zeros(5, dtype=int)) == 0
    assert silhouette(rows, np.arange(5)) == 0


def literal_distances(rows: np.ndarray, selected: np.ndarray) -> list[float]:
    wide = rows.astype(np.float64)
    return [min(float(np.linalg.norm(row - wide[other])) for other in selected) for row in wide]


@pytest.mark.parametrize("block_rows", [1, 7, 100])
def test_coverage_is_the_distance_to_the_nearest_selected_row(block_rows: int) -> None:
    rows = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float16)
    selected = np.array([3, 4, 17, 50])
    measured = coverage(ArraySource(rows, block_rows=block_rows), selected, rng_key=1)
    expected = literal_distances(rows, selected)
    assert measured == pytest.approx((np.mean(expected), np.percentile(expected, 95)))


def test_coverage_of_a_sample_is_that_of_some_of_the_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((60, 1)).astype(np.float32)
    selected = np.array([8])
    measured = {coverage(ArraySource(rows), selected, rng_key=rng_key, max_rows=1).mean for rng_key in range(40)}
    expected = literal_distances(rows, selected)
    assert len(measured) > 10
    assert all(min(abs(one - other) for other in expected) < 1e-6 for one in measured)


def test_coverage_is_exact_far_from_the_origin() -> None:
    rows = (np.arange(40)[:, None] * 2.0**-12 + 100).astype(np.float32)
    assert coverage(ArraySource(rows), np.arange(40), rng_key=1) == (0, 0)
    assert coverage(ArraySource(rows), np.arange(0, 40, 2), rng_key=1).mean == pytest.approx(2.0**-13, rel=1e-6)


def test_coverage_needs_a_selection() -> None:
    with pytest.raises(ValueError, match="nothing is selected"):
        coverage(ArraySource(np.ones((3, 2))), np.empty(0, np.int64), rng_key=1)


@pytest.mark.parametrize("shape", [(30, 5), (4, 9)])
def test_vendi_score_equals_its_primal_form(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.T / len(rows))
    expected = np.exp(-sum(value * np.log(value) for value in eigenvalues if value > 1e-12))
    for block_rows in (3, 100):
        assert vendi_score(ArraySource(rows, block_rows=block_rows)) == pytest.approx(expected, rel=1e-9)


def test_vendi_score_counts_what_is_unlike() -> None:
    assert vendi_score(ArraySource(np.eye(6) * 3)) == pytest.approx(6)
    assert vendi_score(ArraySource(np.ones((50, 6)))) == pytest.approx(1)
    assert vendi_score(ArraySource(np.array([[1.0, 0], [0, 2], [0, 0]]))) == pytest.approx(2)
