from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base.errors import ConfigError, DataError
from curation.embeddings.source import ArraySource
from curation.selectors import retrieval
from curation.selectors.config import RetrievalConfig
from curation.selectors.select import select
from curation.selectors.selection import Pool, Selection
from tests.curation.selectors.helpers import check_promises, example_pool, one_cluster, promises


def queries_of(num: int, seed: int = 0) -> ArraySource:
    return ArraySource(np.random.default_rng(seed).normal(1, 2, (num, 3)).astype(np.float32))


@settings(max_examples=30)
@promises
def test_promises(kind: str, num: int, seed: int, budget: int) -> None:
    check_promises(RetrievalConfig(budget=budget), kind, num, seed, queries=queries_of(5, seed))


def literal(rows: np.ndarray, queries: np.ndarray, available: np.ndarray, budget: int) -> list[int]:
    """Rows by the smallest (rank, distance, row) over queries."""
    best: dict[int, tuple[int, float, int]] = {}
    for query in queries:
        by_distance = sorted((float(((rows[row] - query) ** 2).sum()), int(row)) for row in np.flatnonzero(available))
        for rank, (distance, row) in enumerate(by_distance):
            best[row] = min(best.get(row, (rank, distance, row)), (rank, distance, row))
    return sorted(row for _, _, row in sorted(best.values())[:budget])


@settings(max_examples=40)
@given(st.integers(2, 70), st.integers(1, 12), st.integers(1, 80), st.booleans(), st.integers(0, 1000))
def test_every_query_gets_its_next_nearest_in_turn(num: int, asked: int, budget: int, whole: bool, seed: int) -> None:
    draws = np.random.default_rng(seed)
    # On a coarse grid about the origin there are many ties, and nothing rounds here either.
    rows = draws.integers(-3, 4, (num, 3)).astype(np.float32)
    queries = draws.integers(-3, 4, (asked, 3)).astype(np.float32)
    available = np.ones(num, dtype=bool) if whole else draws.random(num) < 0.6
    pool = Pool(
        hierarchy=one_cluster(rows),
        embeddings=ArraySource(rows, block_rows=20),
        queries=ArraySource(queries),
        available=None if whole else available,
    )
    selection = select(RetrievalConfig(budget=budget), pool, rng_key=1)
    assert selection.rows.tolist() == literal(rows, queries, available, budget)


@pytest.mark.parametrize(("held", "tile"), [(1, 1024), (2**25, 3), (500, 7)])
def test_small_tiles_and_few_queries_at_once_change_nothing(held: int, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, tree = example_pool("blobs", 200)
    pool = Pool(hierarchy=tree, embeddings=ArraySource(rows), queries=queries_of(9))
    whole = select(RetrievalConfig(budget=60), pool, rng_key=1).rows
    monkeypatch.setattr(retrieval, "_HELD", held)
    monkeypatch.setattr(retrieval, "_TILE", tile)
    assert np.array_equal(select(RetrievalConfig(budget=60), pool, rng_key=1).rows, whole)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ties_are_not_left_to_rounding(dtype: type) -> None:
    """Permutations of a row are equally far from a query of equal numbers, in whatever order their products are summed."""
    rows = np.array(list(permutations([0.1, 0.7, 1.3, -0.4, 0.9]))).astype(dtype)
    pool = Pool(hierarchy=one_cluster(rows), embeddings=ArraySource(rows), queries=ArraySource(np.full((1, 5), 0.3)))
    assert select(RetrievalConfig(budget=50), pool, rng_key=1).rows.tolist() == list(range(50))


def test_queries_that_agree_look_further() -> None:
    rows, tree = example_pool("blobs", 200)
    queries = np.repeat(rows[:1] + 0.1, 30, axis=0)
    selection = select(
        RetrievalConfig(budget=50), Pool(hierarchy=tree, embeddings=ArraySource(rows), queries=ArraySource(queries)), rng_key=1
    )
    nearest = np.argsort(((rows - queries[0]) ** 2).sum(1))[:50]
    assert selection.rows.tolist() == sorted(nearest.tolist())


def test_far_from_the_origin_the_nearest_are_still_found() -> None:
    """There, expanded distances in float32 would be rounding only."""
    rows, tree = example_pool("blobs", 200)
    far = rows + 5000
    tree = replace(tree, levels=(replace(tree.levels[0], centroids=tree.levels[0].centroids + 5000),))
    queries = ArraySource(far[:3])
    selection = select(RetrievalConfig(budget=3), Pool(hierarchy=tree, embeddings=ArraySource(far), queries=queries), rng_key=1)
    assert selection.rows.tolist() == [0, 1, 2]


def of_clusters(budget: int, queries: np.ndarray, available: np.ndarray | None = None, rng_key: int = 1) -> Selection:
    _, tree = example_pool("blobs", 200)
    pool = Pool(hierarchy=tree, queries=ArraySource(queries), available=available)
    return select(RetrievalConfig(budget=budget, expand="clusters"), pool, rng_key=rng_key)


def test_clusters_give_in_proportion_to_their_votes() -> None:
    level = example_pool("blobs", 200)[1].levels[0]
    one, two = np.argsort(-level.sizes)[:2]
    queries = level.centroids[[one, one, one, two]]
    selection = of_clusters(8, queries)
    assert np.bincount(level.assignment[selection.rows], minlength=level.num_clusters)[[one, two]].tolist() == [6, 2]
    assert selection.counts["clusters"] == 2
    assert selection.counts["unspent"] == 0
    assert not np.array_equal(selection.rows, of_clusters(8, queries, rng_key=2).rows)


def test_what_does_not_fit_passes_on_and_then_stays_unspent() -> None:
    level = example_pool("blobs", 200)[1].levels[0]
    one, two = np.argsort(-level.sizes)[:2]
    queries = level.centroids[[one] + 20 * [two]]
    available = np.arange(200) % 3 > 0
    sizes = np.bincount(level.assignment[available], minlength=level.num_clusters)
    selection = of_clusters(int(sizes[two]) + 3, queries, available)
    assert np.bincount(level.assignment[selection.rows], minlength=level.num_clusters)[[one, two]].tolist() == [3, sizes[two]]
    assert available[selection.rows].all()
    selection = of_clusters(150, queries, available)
    assert selection.rows.tolist() == np.flatnonzero(np.isin(level.assignment, [one, two]) & available).tolist()
    assert selection.counts["unspent"] == 150 - sizes[[one, two]].sum()


def test_what_cannot_be_retrieved_from_is_refused() -> None:
    rows, tree = example_pool("blobs", 200)
    config = RetrievalConfig(budget=5)
    with pytest.raises(ConfigError, match="similar to queries"):
        select(config, Pool(hierarchy=tree, embeddings=ArraySource(rows)), rng_key=1)
    with pytest.raises(ConfigError, match="compares rows"):
        select(config, Pool(hierarchy=tree, queries=queries_of(2)), rng_key=1)
    for wrong in (np.zeros((0, 3)), np.zeros((2, 4))):
        with pytest.raises(DataError, match="3 dimensions"):
            select(config, Pool(hierarchy=tree, embeddings=ArraySource(rows), queries=ArraySource(wrong)), rng_key=1)
    nan = ArraySource(np.full((2, 3), np.nan))
    with pytest.raises(DataError, match="NaN"):
        select(config, Pool(hierarchy=tree, embeddings=ArraySource(rows), queries=nan), rng_key=1)
