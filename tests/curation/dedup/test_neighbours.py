import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.dedup import neighbours
from curation.dedup.neighbours import Pairs, find_visits, near_pairs
from curation.embeddings.source import ArraySource
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import build_hierarchy
from curation.levels import Level
from curation.sampling.draw import grouped


def clustered(rows: np.ndarray, num: int) -> Level:
    config = ClusterConfig(levels=(num,), resampling_steps=0)
    return build_hierarchy(ArraySource(rows), config, rng_key=1).levels[0]


def near(rows: np.ndarray, num: int, radius: float, max_visits: int, clusters: list[range]) -> tuple[list[Pairs], int]:
    source, level = ArraySource(rows, block_rows=70), clustered(rows, num)
    visits = find_visits(source, level.centroids, level.assignment, radius, max_visits=max_visits)
    csr = grouped(level.assignment, level.num_clusters)
    parts = [near_pairs(source, level.centroids, *csr, visits, radius, clusters=numbers) for numbers in clusters]
    return [piece for part in parts for piece in part], visits.missed


def find_pairs(rows: np.ndarray, num: int, radius: float, max_visits: int = 64) -> tuple[dict[tuple[int, int], float], int]:
    pairs, missed = near(rows, num, radius, max_visits, [range(num)])
    listed = [(int(a), int(b), float(d)) for piece in pairs for a, b, d in zip(*piece, strict=True)]
    assert len({(a, b) for a, b, _ in listed}) == len(listed), "a pair was found twice"
    return {(a, b): d for a, b, d in listed}, missed


def brute_force(rows: np.ndarray, radius: float) -> dict[tuple[int, int], float]:
    x = rows.astype(np.float64)
    squared = ((x[:, None] - x) ** 2).sum(2)
    return {(i, j): squared[i, j] for i, j in zip(*np.nonzero(np.triu(squared <= radius**2, 1)), strict=True)}


@settings(max_examples=30)
@given(st.integers(2, 300), st.integers(1, 40), st.integers(1, 6), st.floats(0.05, 1.5), st.integers(0, 10**6))
def test_every_pair_within_the_radius_is_found_once(num: int, clusters: int, dim: int, radius: float, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((num, dim)).astype(np.float32)
    pairs, missed = find_pairs(rows, clusters, radius, max_visits=10**6)
    expected = brute_force(rows, radius)
    border = {pair for pair, d in brute_force(rows, radius * 1.001).items() if d > (radius * 0.999) ** 2}
    assert missed == 0
    assert set(pairs) - border == set(expected) - border
    for pair, squared in pairs.items():
        assert squared == pytest.approx(((rows[pair[0]].astype(np.float64) - rows[pair[1]]) ** 2).sum(), rel=1e-4, abs=1e-6)


def test_copies_are_paired_with_the_first_only() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((4, 3)).astype(np.float16), 50, axis=0)
    pairs, _ = find_pairs(rows, 3, 0.01)
    assert sorted(pairs) == [(i - i % 50, i) for i in range(200) if i % 50]


def test_batches_that_barely_fit_and_small_tiles_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    whole, _ = find_pairs(rows, 20, 0.4)
    monkeypatch.setattr(neighbours, "_HELD", 100)
    monkeypatch.setattr(neighbours, "_TILE", 7)
    parts, _ = find_pairs(rows, 20, 0.4)
    assert set(parts) == set(whole)


def test_ranges_of_clusters_add_up_to_all_pairs() -> None:
    rows = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    whole, _ = near(rows, 20, 0.4, 64, [range(20)])
    parts, _ = near(rows, 20, 0.4, 64, [range(7), range(7, 7), range(7, 8), range(8, 20)])
    listed = [[pair for piece in pieces for pair in zip(*piece[:2], strict=True)] for pieces in (whole, parts)]
    assert sorted(listed[0]) == sorted(listed[1])


def test_visits_left_out_are_counted_and_cost_recall_only() -> None:
    rows = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32)
    limited, missed = find_pairs(rows, 40, 0.5, max_visits=1)
    assert missed > 0
    assert set(limited) < set(brute_force(rows, 0.5001))
