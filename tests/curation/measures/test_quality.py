import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from curation.embeddings.source import ArraySource
from curation.measures import quality
from curation.measures.quality import (
    ami,
    ari,
    churn,
    contingency,
    coverage,
    imbalance,
    kl_from_uniform,
    nmi,
    rankme,
    share_empty,
    silhouette,
    size_entropy,
    total_variation_from_uniform,
    uniformity,
    vendi_score,
)

Labels = Sequence[int]

sizes = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(any).map(np.array)


@st.composite
def two_clusterings(draw: st.DrawFn, rows: int = 40, clusters: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the same rows, with cluster numbers that no row has among them."""
    num = draw(st.integers(1, rows))
    labels = st.lists(st.integers(0, clusters - 1), min_size=num, max_size=num)
    return np.array(draw(labels)), np.array(draw(labels))


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
    found = coverage(ArraySource(rows, block_rows=block_rows), selected, rng_key=1)
    expected = literal_distances(rows, selected)
    assert found == pytest.approx((np.mean(expected), np.percentile(expected, 95)))


def test_coverage_of_a_sample_is_that_of_some_of_the_rows() -> None:
    rows = np.random.default_rng(0).standard_normal((60, 1)).astype(np.float32)
    selected = np.array([8])
    found = {coverage(ArraySource(rows), selected, rng_key=rng_key, max_rows=1).mean for rng_key in range(40)}
    expected = literal_distances(rows, selected)
    assert len(found) > 10
    assert all(min(abs(one - other) for other in expected) < 1e-6 for one in found)


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


def literal_information(first: Labels, second: Labels) -> float:
    num, both = len(first), Counter(zip(first, second, strict=True))
    one, other = Counter(first), Counter(second)
    return sum(n / num * np.log(num * n / (one[i] * other[j])) for (i, j), n in both.items())


def literal_entropy(labels: Labels) -> float:
    return -sum(n / len(labels) * np.log(n / len(labels)) for n in Counter(labels).values())


@given(two_clusterings())
def test_contingency_counts_pairs_of_labels(labels: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = labels
    expected = np.zeros((first.max() + 1, second.max() + 1))
    for i, j in zip(first, second, strict=True):
        expected[i, j] += 1
    assert contingency(first, second).toarray().tolist() == expected.tolist()


def test_contingency_does_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = np.random.default_rng(0).integers(0, 9, (2, 500))
    whole = contingency(first, second).toarray()
    monkeypatch.setattr(quality, "_BLOCK", 7)
    assert (contingency(first, second).toarray() == whole).all()
    assert whole.sum() == 500


@given(two_clusterings())
def test_nmi_ami_and_ari_are_those_of_scikit_learn(labels: tuple[np.ndarray, np.ndarray]) -> None:
    table = contingency(*labels)
    assert nmi(table) == pytest.approx(normalized_mutual_info_score(*labels), abs=1e-9)
    assert ari(table) == pytest.approx(adjusted_rand_score(*labels), abs=1e-9)
    assert ami(table, rng_key=1) == pytest.approx(adjusted_mutual_info_score(*labels), abs=1e-9)


@pytest.mark.filterwarnings("error")
def test_numbers_that_no_row_has_change_nothing() -> None:
    first, second = np.random.default_rng(0).integers(0, 4, (2, 30))
    plain, gaps = contingency(first, second), contingency(3 * first + 1, 2 * second)
    for measure in (nmi, ari, churn):
        assert measure(gaps) == pytest.approx(measure(plain))
    assert ami(gaps, rng_key=1) == pytest.approx(ami(plain, rng_key=1))


@given(two_clusterings())
def test_nmi_is_the_information_over_the_mean_entropy(labels: tuple[np.ndarray, np.ndarray]) -> None:
    first, second = (clustering.tolist() for clustering in labels)
    entropy = (literal_entropy(first) + literal_entropy(second)) / 2
    expected = literal_information(first, second) / entropy if entropy else 1
    assert nmi(contingency(*labels)) == pytest.approx(expected, abs=1e-9)


def test_ari_counts_pairs_of_rows() -> None:
    first, second = np.random.default_rng(0).integers(0, 4, (2, 30))
    pairs = list(itertools.combinations(range(30), 2))
    one = np.array([first[i] == first[j] for i, j in pairs])
    other = np.array([second[i] == second[j] for i, j in pairs])
    expected = one.sum() * other.sum() / len(pairs)
    index = ((one & other).sum() - expected) / ((one.sum() + other.sum()) / 2 - expected)
    assert ari(contingency(first, second)) == pytest.approx(index)


@pytest.mark.parametrize(
    ("first", "second"), [([0, 0, 1, 1, 1, 2], [1, 1, 0, 0, 2, 2]), ([0, 0, 0, 1, 2, 2], [0, 1, 1, 1, 1, 1])]
)
def test_ami_takes_off_the_mean_over_all_orders(first: list[int], second: list[int]) -> None:
    by_chance = np.mean([literal_information(first, other) for other in itertools.permutations(second)])
    entropy = (literal_entropy(first) + literal_entropy(second)) / 2
    expected = (literal_information(first, second) - by_chance) / (entropy - by_chance)
    assert ami(contingency(np.array(first), np.array(second)), rng_key=1) == pytest.approx(expected)


def test_ami_of_many_rows_is_nearly_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = np.random.default_rng(0)
    first = draws.integers(0, 60, 20_000)
    second = np.where(draws.random(20_000) < 0.5, first // 2, draws.integers(0, 80, 20_000))
    table = contingency(first, second)
    exact = ami(table, rng_key=1)
    monkeypatch.setattr(quality, "_EXACT_TERMS", 0)
    assert ami(table, rng_key=1) == ami(table, rng_key=1) != exact
    assert [ami(table, rng_key=rng_key) for rng_key in range(5)] == pytest.approx([exact] * 5, abs=3e-3)
    assert nmi(table) - exact > 0.01  # so that the test would see chance left in


def literal_churn(first: np.ndarray, second: np.ndarray) -> float:
    """The least over all ways to give old clusters new ones or none (negative), no new one twice."""
    old, new = np.unique(first).tolist(), [*np.unique(second).tolist(), *range(-len(np.unique(first)), 0)]
    stay = 0
    for partners in itertools.permutations(new, len(old)):
        match = dict(zip(old, partners, strict=True))
        stay = max(stay, sum(match[i] == j for i, j in zip(first.tolist(), second.tolist(), strict=True)))
    return 1 - stay / len(first)


@settings(deadline=None, max_examples=60)
@given(two_clusterings(rows=12, clusters=4))
def test_churn_is_the_least_over_all_matchings(labels: tuple[np.ndarray, np.ndarray]) -> None:
    assert churn(contingency(*labels)) == pytest.approx(literal_churn(*labels))


def test_churn_by_hand() -> None:
    # The largest overlap, 4, must be given up: 3 + 3 is more than 4 + 0.
    first, second = np.repeat([0, 0, 1], [4, 3, 3]), np.repeat([5, 6, 5], [4, 3, 3])
    assert churn(contingency(first, second)) == pytest.approx(0.4)
    names = np.random.default_rng(0).permutation(200)
    labels = np.arange(1000) % 200
    assert churn(contingency(labels, names[labels])) == 0
    assert churn(contingency(labels, np.zeros(1000, dtype=int))) == pytest.approx(1 - 5 / 1000)
