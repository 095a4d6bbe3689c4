from pathlib import Path

import numpy as np
import pytest

from curation.base.collectives import Alone, TorchCollectives, place_among
from curation.base.journal import Journal
from curation.embeddings.source import ArraySource
from curation.kmeans import splits
from curation.kmeans.config import ClusterConfig
from curation.kmeans.hierarchy import hierarchical_kmeans
from curation.kmeans.lloyd import KMeans, KMeansOptions
from tests.helpers import on_ranks

ARRAYS = [
    np.arange(12, dtype=np.float32).reshape(3, 4),
    np.asfortranarray(np.arange(6, dtype=np.int64).reshape(2, 3)),
    np.array([3, 2**63], dtype=np.uint64),
    np.frombuffer(b"read-only", dtype=np.uint8),
    np.array([True, False]),
    np.float64(2.5) * np.ones(()),
    np.empty((0, 7), dtype=np.int32),
]


class NoWaste(TorchCollectives):
    """Refuses to gather what only one worker has: that would send as many padded copies as there are workers."""

    def gather(self, array: np.ndarray) -> list[np.ndarray]:
        arrays = super().gather(array)
        holders = [rank for rank, of_worker in enumerate(arrays) if len(of_worker)]
        total = sum(of_worker.nbytes for of_worker in arrays)
        assert len(holders) > 1 or total < 100, f"{total} bytes that only worker {holders} has were gathered"
        return arrays


def _broadcasts(rank: int) -> None:
    workers = TorchCollectives()
    for source in range(workers.size):
        for number, array in enumerate(ARRAYS):
            received = workers.broadcast(array if rank == source else None, source)
            assert received.dtype == array.dtype, number
            assert received.shape == array.shape, number
            assert np.array_equal(received, array), number
    ignored = np.full(5, rank)
    assert workers.broadcast(ignored, 1).tolist() == [1] * 5
    assert ignored.tolist() == [rank] * 5


def test_every_worker_receives_the_array_of_one() -> None:
    on_ranks(_broadcasts, 3)
    for array in ARRAYS:
        assert np.array_equal(Alone().broadcast(array, 0), array)


def test_a_single_worker_must_have_the_array() -> None:
    with pytest.raises(ValueError, match="must broadcast an array"):
        Alone().broadcast(None, 0)


def _places(rank: int) -> None:
    assert place_among(TorchCollectives(), [5, 0, 2][rank]) == ([0, 5, 5][rank], 7)


def test_the_place_of_a_worker_is_after_the_rows_of_the_smaller_ranks() -> None:
    on_ranks(_places, 3)


def _journal(rank: int, directory: Path) -> None:
    arrays = {"centroids": np.random.default_rng(0).random((500, 8)), "step": np.array(3)}
    Journal(directory, NoWaste(), seconds=0).save("state", **arrays)
    loaded = Journal(directory, NoWaste()).load("state")
    assert loaded is not None
    assert {name: array.tolist() for name, array in loaded.items()} == {name: array.tolist() for name, array in arrays.items()}
    assert Journal(directory, NoWaste()).load("nothing") is None


def test_a_journal_is_not_gathered(tmp_path: Path) -> None:
    on_ranks(_journal, 2, tmp_path)


def _rows() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(25_000, 6)).astype(np.float32)


def _kmeans(rank: int) -> None:
    workers = NoWaste()
    source = ArraySource(_rows(), block_rows=1000).share(rank, workers.size)
    KMeans(source, 40, rng_key=1, options=KMeansOptions(max_iterations=2), collectives=workers).run()


def _split(rank: int) -> None:
    splits._BATCH_BYTES = 4 * 6 * 600  # five batches, so that the last turn of three workers is not full
    source = ArraySource(_rows()[:2000], block_rows=100)
    config = ClusterConfig(levels=(60,), splits=12, resampling_steps=1, max_iterations=2)
    assert len(list(hierarchical_kmeans(source, config, rng_key=1, collectives=NoWaste()))) > 2


def test_centroids_of_one_worker_are_not_gathered() -> None:
    on_ranks(_kmeans, 3)
    on_ranks(_split, 3)
