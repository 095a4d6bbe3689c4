import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, normalized_mutual_info_score

from curation.measures import agreement
from curation.measures.agreement import ami, ari, churn, contingency, nmi

Labels = Sequence[int]


@st.composite
def two_clusterings(draw: st.DrawFn, rows: int = 40, clusters: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Labels of the same rows, with cluster numbers that no row has among them."""
    num = draw(st.integers(1, rows))
    labels = st.lists(st.integers(0, clusters - 1), min_size=num, max_size=num)
    return np.array(draw(labels)), np.array(draw(labels))


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
    monkeypatch.setattr(agreement, "_BLOCK", 7)
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
    monkeypatch.setattr(agreement, "_EXACT_TERMS", 0)
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


@settings(max_examples=60)
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
