from typing import Any

import numpy as np
import pytest
import torch

from curation.base.collectives import Alone, TorchCollectives
from curation.base.journal import Journal
from curation.embeddings.source import ArraySource
from curation.kmeans import splits
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import hierarchical_kmeans
from curation.levels import Level, LevelShare
from tests.helpers import on_ranks


def rows() -> np.ndarray:
    """Five heaps of different size, each of many small ones."""
    draws = np.random.default_rng(0)
    heaps = [
        draws.normal(10 * heap, 1, (12, 6))[draws.integers(0, 12, num)] + draws.normal(0, 0.05, (num, 6))
        for heap, num in enumerate((40, 200, 300, 500, 700))
    ]
    return draws.permutation(np.concatenate(heaps)).astype(np.float16)


def split(workers: Any, journal: Journal | None = None, **settings: Any) -> Level:
    """A level of 60 clusters made by splitting 5, as `workers` know it."""
    source, config = ArraySource(rows(), block_rows=100), ClusterConfig(levels=(60,), splits=12, **settings)
    events = hierarchical_kmeans(source, config, rng_key=1, collectives=workers, journal=journal)
    return next(event.whole() for event in events if isinstance(event, LevelShare))


@pytest.mark.parametrize("spherical", [False, True])
def test_every_cluster_is_split_and_rows_go_to_the_nearest_part(spherical: bool) -> None:
    level = split(Alone(), resampling_steps=0, spherical=spherical)
    assert 50 < level.num_clusters <= 60
    assert level.sizes.min() > 0
    assert level.sizes.tolist() == np.bincount(level.assignment).tolist()
    squared = ((rows()[:, None].astype(np.float64) - level.centroids) ** 2).sum(2)
    to_assigned = squared[np.arange(len(squared)), level.assignment]
    assert np.allclose(to_assigned, level.squared_distance, rtol=1e-3, atol=1e-4)
    if spherical:
        assert np.allclose(np.linalg.norm(level.centroids, axis=1), 1, atol=1e-5)
    else:  # the heaps are far apart, so that but for rows between two clusters the nearest part is the nearest of all
        assert (level.assignment == squared.argmin(1)).mean() > 0.99
        assert level.squared_distance.mean() < 0.2


def on_worker(rank: int, alone: Level, bounds: list[int]) -> None:
    level = split(TorchCollectives(), resampling_steps=1)
    assert np.array_equal(level.centroids, alone.centroids)
    assert np.array_equal(level.sizes, alone.sizes)
    assert np.array_equal(level.assignment, alone.assignment[bounds[rank] : bounds[rank + 1]])


def test_the_parts_are_the_same_on_any_number_of_workers_and_in_any_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "_BATCH_BYTES", 4 * 6 * 250)
    alone = split(Alone(), resampling_steps=1)
    monkeypatch.undo()
    assert np.array_equal(split(Alone(), resampling_steps=1).centroids, alone.centroids)
    on_ranks(on_worker, 2, alone, [0, 900, 1740])


def test_a_journal_keeps_the_parts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = split(Alone(), Journal(tmp_path, seconds=0), resampling_steps=0)
    monkeypatch.setattr(splits, "_parts", lambda *_: pytest.fail("made again"))
    again = split(Alone(), Journal(tmp_path, seconds=0), resampling_steps=0)
    assert np.array_equal(whole.assignment, again.assignment)
    assert torch.equal(torch.from_numpy(whole.centroids), torch.from_numpy(again.centroids))
