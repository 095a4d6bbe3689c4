import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation import rng
from curation.collectives import TorchCollectives
from curation.errors import DataError
from curation.kmeans import kmeans, plus_plus
from curation.source import ArraySource, Subset
from tests.helpers import on_ranks


def mixture(num: int, dim: int, components: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    share = 1 / np.arange(1, components + 1)
    centres = 4 * draws.standard_normal((components, dim))
    return (centres[draws.choice(components, num, p=share / share.sum())] + draws.standard_normal((num, dim))).astype(
        np.float16
    )


def test_four_points_worked_by_hand() -> None:
    rows = np.array([[0, 0], [0, 2], [10, 0], [10, 4]], dtype=np.float32)
    found = kmeans(ArraySource(rows), 2, stream=1)
    order = np.argsort(found.centroids[:, 0])
    assert found.centroids[order].tolist() == [[0, 1], [10, 2]]
    assert found.squared_distance.tolist() == [1, 1, 4, 4]
    assert found.sizes.tolist() == [2, 2]
    assert found.inertia[-1] == 10


def test_objective_is_no_worse_than_that_of_faiss() -> None:
    rows = mixture(6000, 32, 80).astype(np.float32)
    found = kmeans(ArraySource(rows), 100, stream=1, max_iterations=20, tolerance=0)
    peer = faiss.Kmeans(32, 100, niter=20, seed=1, max_points_per_centroid=10**6)
    peer.init_method = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    peer.train(rows)
    theirs = peer.index.search(rows, 1)[0].sum(dtype=np.float64)
    assert found.inertia[-1] <= 1.02 * theirs


def test_labels_are_those_of_a_float64_argmin() -> None:
    rows = mixture(3000, 24, 30)
    found = kmeans(ArraySource(rows), 50, stream=1)
    exact = ((rows[:, None].astype(np.float64) - found.centroids) ** 2).sum(2)
    assert (exact.argmin(1) == found.assignment).mean() >= 0.9999
    assert np.allclose(exact.min(1), found.squared_distance, rtol=1e-3, atol=1e-3)


def test_far_from_the_origin_nothing_cancels() -> None:
    rows = mixture(2000, 8, 10).astype(np.float32)
    near, far = (kmeans(ArraySource(rows + shift), 20, stream=1) for shift in (0, 3000))
    assert far.inertia[-1] == pytest.approx(near.inertia[-1], rel=0.01)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 3), st.integers(1, 12), st.integers(0, 10**6))
def test_any_data_gives_nonempty_clusters_and_falling_inertia(
    num: int, clusters: int, dim: int, distinct: int, seed: int
) -> None:
    draws = np.random.default_rng(seed)
    rows = draws.integers(0, distinct, (num, dim)).astype(np.float16)
    found = kmeans(ArraySource(rows, block_rows=7), clusters, stream=seed, tolerance=0)
    assert len(found.centroids) <= min(clusters, len(np.unique(rows, axis=0)))
    assert (found.sizes == np.bincount(found.assignment, minlength=len(found.centroids))).all()
    assert found.sizes.min() >= 1
    assert all(later <= earlier * (1 + 1e-5) + 1e-5 for earlier, later in zip(found.inertia, found.inertia[1:], strict=False))


def test_as_many_clusters_as_distinct_rows_fit_perfectly() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float16), 100, axis=0)
    found = kmeans(ArraySource(rows), 50, stream=1)
    assert len(found.centroids) == 5
    assert found.squared_distance.max() < 1e-5


def test_empty_clusters_are_repaired() -> None:
    rows = mixture(500, 4, 5)
    start = np.concatenate([np.zeros((1, 4)), np.full((9, 4), 1000.0)])  # nine of ten attract nothing
    found = kmeans(ArraySource(rows), 10, stream=1, initial=start)
    assert len(found.centroids) == 10
    assert found.inertia[-1] < found.inertia[0] / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 29_999])
def test_rows_that_are_no_numbers_are_refused(bad: float, place: int) -> None:
    rows = np.random.default_rng(0).standard_normal((30_000, 2)).astype(np.float16)
    rows[place] = bad
    with pytest.raises(DataError, match="NaN or infinite"):
        kmeans(ArraySource(rows), 3, stream=1)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        kmeans(ArraySource(np.empty((0, 2))), 3, stream=1)


def test_greedy_seeding_beats_random_seeding() -> None:
    rows = mixture(4000, 16, 40).astype(np.float32)
    greedy = plus_plus(rows, 40, stream=1)
    random = rows[rng.permute(1, np.arange(40), 4000)]
    potential = [((rows[:, None] - seeds) ** 2).sum(2).min(1).sum() for seeds in (greedy, random)]
    assert potential[0] < 0.7 * potential[1]


def test_the_cut_into_blocks_does_not_matter() -> None:
    rows = mixture(5000, 16, 20)
    first, *others = (kmeans(ArraySource(rows, block_rows=size), 30, stream=1) for size in (5000, 1024, 977))
    for other in others:
        assert np.array_equal(first.assignment, other.assignment)
        assert np.allclose(first.centroids, other.centroids, atol=1e-5)


def test_a_subset_is_clustered_like_its_copy() -> None:
    rows = mixture(3000, 8, 10)
    chosen = np.flatnonzero(np.random.default_rng(0).random(3000) < 0.4)
    view = kmeans(Subset(ArraySource(rows, block_rows=512), chosen), 20, stream=1)
    copy = kmeans(ArraySource(rows[chosen]), 20, stream=1)
    assert np.array_equal(view.assignment, copy.assignment)


def _same_on_every_worker(rank: int) -> None:
    # Few rows, several empty clusters, donors that may not give: more workers must not offer more.
    few = np.array([[v, 0] for v in (0, 1, 2, 3, 100, 101, 102, 103)], dtype=np.float16)
    seeds = np.array([[10, 0], [103, 0], [1000, 0], [2000, 0]], dtype=np.float32)
    alone = kmeans(ArraySource(few, block_rows=2), 4, stream=1, initial=seeds, max_iterations=1)
    shared = kmeans(
        ArraySource(few, block_rows=2), 4, stream=1, initial=seeds, max_iterations=1, collectives=TorchCollectives()
    )
    assert np.array_equal(alone.centroids, shared.centroids)
    rows = mixture(5000, 16, 20)
    start = rows[:30].astype(np.float32)
    start[7] = 500  # and an empty cluster to repair
    for initial in (None, start):
        alone = kmeans(ArraySource(rows, block_rows=512), 30, stream=1, initial=initial)
        shared = kmeans(ArraySource(rows, block_rows=512), 30, stream=1, initial=initial, collectives=TorchCollectives())
        assert np.array_equal(alone.centroids, shared.centroids)
        assert np.array_equal(alone.assignment, shared.assignment)
        assert np.array_equal(alone.squared_distance, shared.squared_distance)
        assert alone.inertia == shared.inertia


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(world_size: int) -> None:
    on_ranks(_same_on_every_worker, world_size)
