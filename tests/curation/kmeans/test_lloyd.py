from collections.abc import Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.base import rng
from curation.base.collectives import Alone, TorchCollectives
from curation.base.errors import DataError
from curation.base.journal import Journal
from curation.embeddings.source import ArraySource, Block, EmbeddingSource, Subset
from curation.kmeans.hierarchy import closest_items
from curation.kmeans.lloyd import KMeans, KMeansOptions, KMeansResult, Progress
from curation.kmeans.seeding import plus_plus
from tests.helpers import on_ranks

_OPTIONS = {field.name for field in fields(KMeansOptions)}


def kmeans(source: EmbeddingSource, num_clusters: int, **settings: Any) -> KMeansResult:
    """A whole k-means; `settings` may name options one by one."""
    options = KMeansOptions(**{name: settings.pop(name) for name in _OPTIONS & set(settings)})
    return KMeans(source, num_clusters, options=options, **settings).run()


def mixture(num: int, dim: int, components: int, seed: int = 0) -> np.ndarray:
    draws = np.random.default_rng(seed)
    share = 1 / np.arange(1, components + 1)
    centres = 4 * draws.standard_normal((components, dim))
    return (centres[draws.choice(components, num, p=share / share.sum())] + draws.standard_normal((num, dim))).astype(
        np.float16
    )


def test_four_points_worked_by_hand() -> None:
    rows = np.array([[0, 0], [0, 2], [10, 0], [10, 4]], dtype=np.float32)
    result = kmeans(ArraySource(rows), 2, rng_key=1)
    order = np.argsort(result.centroids[:, 0])
    assert result.centroids[order].tolist() == [[0, 1], [10, 2]]
    assert result.local_squared_distance.tolist() == [1, 1, 4, 4]
    assert result.sizes.tolist() == [2, 2]
    assert result.inertia[-1] == 10


def test_objective_is_no_worse_than_that_of_faiss() -> None:
    rows = mixture(6000, 32, 80).astype(np.float32)
    result = kmeans(ArraySource(rows), 100, rng_key=1, max_iterations=20, tolerance=0)
    seeding = faiss.ClusteringInitMethod_KMEANS_PLUS_PLUS
    peer = faiss.Kmeans(32, 100, niter=20, seed=1, max_points_per_centroid=10**6, init_method=seeding)
    peer.train(rows)
    peer_inertia = peer.index.search(rows, 1)[0].sum(dtype=np.float64)
    assert result.inertia[-1] <= 1.005 * peer_inertia


def test_labels_are_those_of_a_float64_argmin() -> None:
    rows = mixture(3000, 24, 30)
    result = kmeans(ArraySource(rows), 50, rng_key=1)
    exact = ((rows[:, None].astype(np.float64) - result.centroids) ** 2).sum(2)
    assert (exact.argmin(1) == result.local_assignment).mean() >= 0.9999
    assert np.allclose(exact.min(1), result.local_squared_distance, rtol=1e-3, atol=1e-3)


def test_far_from_the_origin_nothing_cancels() -> None:
    rows = mixture(2000, 8, 10).astype(np.float32)
    near, far = (kmeans(ArraySource(rows + shift), 20, rng_key=1) for shift in (0, 3000))
    assert far.inertia[-1] == pytest.approx(near.inertia[-1], rel=0.01)


@settings(max_examples=40)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(1, 3), st.integers(1, 12), st.integers(0, 10**6))
def test_any_data_gives_nonempty_clusters_and_falling_inertia(
    num: int, clusters: int, dim: int, distinct: int, seed: int
) -> None:
    draws = np.random.default_rng(seed)
    rows = draws.integers(0, distinct, (num, dim)).astype(np.float16)
    result = kmeans(ArraySource(rows, block_rows=7), clusters, rng_key=seed, tolerance=0)
    assert len(result.centroids) <= min(clusters, len(np.unique(rows, axis=0)))
    assert (result.sizes == np.bincount(result.local_assignment, minlength=len(result.centroids))).all()
    assert result.sizes.min() >= 1
    assert all(later <= earlier * (1 + 1e-5) + 1e-5 for earlier, later in zip(result.inertia, result.inertia[1:], strict=False))


def test_as_many_clusters_as_distinct_rows_fit_perfectly() -> None:
    rows = np.repeat(np.random.default_rng(0).standard_normal((5, 3)).astype(np.float16), 100, axis=0)
    result = kmeans(ArraySource(rows), 50, rng_key=1)
    assert len(result.centroids) == 5
    assert result.local_squared_distance.max() < 1e-5


def test_empty_clusters_are_repaired() -> None:
    rows = mixture(500, 4, 5)
    start = np.concatenate([np.zeros((1, 4)), np.full((9, 4), 1000.0)])  # nine of ten attract nothing
    result = kmeans(ArraySource(rows), 10, rng_key=1, initial=start)
    assert len(result.centroids) == 10
    assert result.inertia[-1] < result.inertia[0] / 2


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("place", [0, 29_999])
def test_rows_that_are_no_numbers_are_refused(bad: float, place: int) -> None:
    rows = np.random.default_rng(0).standard_normal((30_000, 2)).astype(np.float16)
    rows[place] = bad
    with pytest.raises(DataError, match="NaN or infinite"):
        kmeans(ArraySource(rows), 3, rng_key=1)


def test_no_rows_are_refused() -> None:
    with pytest.raises(DataError, match="no rows"):
        kmeans(ArraySource(np.empty((0, 2))), 3, rng_key=1)


def test_greedy_seeding_beats_random_seeding() -> None:
    rows = mixture(4000, 16, 40).astype(np.float32)
    greedy = rows[plus_plus(torch.from_numpy(rows), 40, rng_key=1)]
    random = rows[rng.permute(1, np.arange(40), 4000)]
    potential = [((rows[:, None] - seeds) ** 2).sum(2).min(1).sum() for seeds in (greedy, random)]
    assert potential[0] < 0.7 * potential[1]


def test_the_cut_into_blocks_does_not_matter() -> None:
    rows = mixture(5000, 16, 20)
    first, *others = (kmeans(ArraySource(rows, block_rows=size), 30, rng_key=1) for size in (5000, 1024, 977))
    for other in others:
        assert np.array_equal(first.local_assignment, other.local_assignment)
        assert np.array_equal(first.centroids, other.centroids)


@settings(max_examples=20)
@given(st.integers(20, 400), st.integers(1, 30), st.integers(1, 12), st.booleans(), st.integers(0, 10**6))
def test_the_order_of_rows_does_not_matter(num: int, clusters: int, dim: int, weighted: bool, seed: int) -> None:
    draws = np.random.default_rng(seed)
    rows, order = draws.standard_normal((num, dim)).astype(np.float32), draws.permutation(num)
    weights = draws.uniform(0.5, 2, num).astype(np.float32) if weighted else None
    start = rows[:clusters]  # none is empty, so that none draws a row, which goes by the number of the row
    first = kmeans(ArraySource(rows), clusters, rng_key=1, initial=start, max_iterations=1, weights=weights)
    weights = weights if weights is None else weights[order]
    other = kmeans(ArraySource(rows[order]), clusters, rng_key=1, initial=start, max_iterations=1, weights=weights)
    assert np.array_equal(first.centroids, other.centroids)
    assert np.array_equal(first.local_assignment[order], other.local_assignment)
    assert np.allclose(first.local_squared_distance[order], other.local_squared_distance, atol=1e-7)


def test_a_subset_is_clustered_like_its_copy() -> None:
    rows = mixture(3000, 8, 10)
    chosen = np.flatnonzero(np.random.default_rng(0).random(3000) < 0.4)
    view = kmeans(Subset(ArraySource(rows, block_rows=512), chosen), 20, rng_key=1)
    copy = kmeans(ArraySource(rows[chosen]), 20, rng_key=1)
    assert np.array_equal(view.local_assignment, copy.local_assignment)


def _same_on_every_worker(rank: int) -> None:
    # Few rows, several empty clusters, donors that may not give: more workers must not offer more.
    few = np.array([[v, 0] for v in (0, 1, 2, 3, 100, 101, 102, 103)], dtype=np.float16)
    seeds = np.array([[10, 0], [103, 0], [1000, 0], [2000, 0]], dtype=np.float32)
    workers = TorchCollectives()
    source = ArraySource(few, block_rows=2)
    alone = kmeans(source, 4, rng_key=1, initial=seeds, max_iterations=1)
    shared = kmeans(source.share(rank, workers.size), 4, rng_key=1, initial=seeds, max_iterations=1, collectives=workers)
    assert np.array_equal(alone.centroids, shared.centroids)
    rows = mixture(5000, 16, 20)
    start = rows[:30].astype(np.float32)
    start[7] = 500  # and an empty cluster to repair
    for initial in (None, start):
        source = ArraySource(rows, block_rows=512)
        local = slice(*(len(range(0, 5000, 512)) * r // workers.size * 512 for r in (rank, rank + 1)))
        alone = kmeans(source, 30, rng_key=1, initial=initial)
        shared = kmeans(source.share(rank, workers.size), 30, rng_key=1, initial=initial, collectives=workers)
        assert np.array_equal(alone.centroids, shared.centroids)
        assert np.array_equal(alone.local_assignment[local], shared.local_assignment)
        assert np.array_equal(alone.local_squared_distance[local], shared.local_squared_distance)
        assert alone.inertia == shared.inertia
        kept = closest_items(alone, 9, Alone())
        expected = kept[(kept >= local.start) & (kept < local.start + len(shared.local_assignment))] - local.start
        assert np.array_equal(closest_items(shared, 9, workers), expected)


@pytest.mark.parametrize("world_size", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(world_size: int) -> None:
    on_ranks(_same_on_every_worker, world_size)


class KilledError(Exception):
    pass


class Dying(ArraySource):
    """A source whose reader dies at the given read."""

    lives = 10**9

    def take(self, rows: np.ndarray) -> np.ndarray:
        self._live()
        return super().take(rows)

    def blocks(self) -> Iterator[Block]:
        for block in super().blocks():
            self._live()
            yield block

    def _live(self) -> None:
        self.lives -= 1
        if self.lives < 0:
            raise KilledError


@pytest.mark.parametrize("rows", [mixture(2500, 8, 20), np.random.default_rng(0).random((2500, 2)).astype(np.float32)])
def test_killed_anywhere_it_continues_to_the_same_bits(tmp_path: Path, rows: np.ndarray) -> None:
    options = {"rng_key": 1, "tolerance": 0, "max_iterations": 12}
    undisturbed = kmeans(ArraySource(rows, block_rows=500), 60, **options)
    attempts = 0
    while True:
        source = Dying(rows, block_rows=500)
        source.lives = 12  # two passes and a little
        attempts += 1
        try:
            result = kmeans(source, 60, journal=Journal(tmp_path, seconds=0), **options)
            break
        except KilledError:
            assert attempts < 50
    assert attempts > 5
    for name in ("centroids", "local_assignment", "local_squared_distance", "sizes"):
        assert np.array_equal(getattr(result, name), getattr(undisturbed, name))
    assert result.inertia == undisturbed.inertia


def test_seeding_continues_to_the_same_seeds(tmp_path: Path) -> None:
    points = torch.from_numpy(mixture(3000, 16, 40).astype(np.float32))
    undisturbed = plus_plus(points, 300, rng_key=1)
    num_chosen = []

    class Stops(Journal):
        def save(self, name: str, **arrays: np.ndarray) -> None:
            super().save(name, **arrays)
            num_chosen.append(len(arrays["chosen"]))
            raise KilledError

    while True:
        try:
            result = plus_plus(points, 300, rng_key=1, journal=Stops(tmp_path, seconds=0))
            break
        except KilledError:
            assert len(num_chosen) <= 3
    assert num_chosen == [75, 150, 300]
    assert np.array_equal(result, undisturbed)


def test_weights_count_like_repeated_rows() -> None:
    rows = mixture(600, 4, 6)
    times = np.random.default_rng(0).integers(1, 4, 600)
    start = rows[:8].astype(np.float32)
    weighted = kmeans(ArraySource(rows), 8, rng_key=1, initial=start, weights=times.astype(np.float32), tolerance=0)
    repeated = kmeans(ArraySource(np.repeat(rows, times, axis=0)), 8, rng_key=1, initial=start, tolerance=0)
    assert np.allclose(weighted.centroids, repeated.centroids, atol=1e-5)
    assert weighted.inertia[-1] == pytest.approx(repeated.inertia[-1], rel=1e-6)


def test_spherical_centroids_have_unit_length_and_the_nearest_is_the_most_similar() -> None:
    rows = mixture(2000, 8, 12).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    result = kmeans(ArraySource(rows), 30, rng_key=1, spherical=True)
    assert np.allclose(np.linalg.norm(result.centroids, axis=1), 1, atol=1e-6)
    assert ((rows @ result.centroids.T).argmax(1) == result.local_assignment).mean() >= 0.9999
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(result.inertia))


def test_progress_is_told_after_every_pass() -> None:
    events: list[Progress] = []
    KMeans(ArraySource(mixture(500, 6, 10)), 20, rng_key=1).run(events.append)
    assert [event.iteration for event in events] == list(range(1, len(events) + 1))
    assert events[-1].inertia <= events[0].inertia


def test_the_engine_does_not_change_the_result() -> None:
    rows = mixture(3000, 12, 30)
    ours, by_faiss = (kmeans(ArraySource(rows), 40, rng_key=1, engine=engine) for engine in ("torch", "faiss"))
    assert np.array_equal(ours.centroids, by_faiss.centroids)
    assert np.array_equal(ours.local_assignment, by_faiss.local_assignment)
    assert ours.inertia == by_faiss.inertia


def test_rows_that_stay_on_the_device_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = mixture(3000, 12, 30).astype(np.float16)
    streamed = kmeans(ArraySource(rows, block_rows=500), 40, rng_key=1)
    monkeypatch.setattr("curation.kmeans.rows._room", lambda _: 2**30)
    held = kmeans(ArraySource(rows, block_rows=500), 40, rng_key=1)
    assert np.array_equal(streamed.centroids, held.centroids)
    assert np.array_equal(streamed.local_squared_distance, held.local_squared_distance)
