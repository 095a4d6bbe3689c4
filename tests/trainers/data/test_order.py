"""Orders of the stream: exact, the same for any number of ranks, and computed at any position."""

from pathlib import Path

import numpy as np
import pytest

from curation.base.errors import DataError
from tests.trainers.data.test_loader import VIEWS
from trainers.data.config import OrderName
from trainers.data.loader import Loader
from trainers.data.samples import SampleList

LABELS = np.array([5] * 40 + [2] * 9 + [7] * 4 + [0] * 7 + [-1] * 1)


def listed(num: int, directory: Path, num_shards: int = 3, **columns: object) -> SampleList:
    """A list of samples whose bytes nobody reads."""
    shards = tuple(str(directory / f"{number}.tar") for number in range(num_shards))
    for shard in shards:
        Path(shard).touch()
    rows = np.arange(num)
    defaults = {"repeats": np.ones(num, np.int32)}
    nowhere = {"offset": rows, "size": rows, "crc32": rows}
    shard = (rows % num_shards).astype(np.int32)
    return SampleList(shards=shards, shard=shard, row_id=rows, **{**nowhere, **defaults, **columns})  # type: ignore[arg-type]


def stream(samples: SampleList, order: OrderName, num: int, *, first: int = 0, batch: int = 6, seed: int = 1) -> np.ndarray:
    loader = Loader(samples, VIEWS, seed=seed, global_batch_size=batch, order=order)
    return loader.order(np.arange(first, first + num))


ORDERS: list[OrderName] = ["shuffled", "balanced", "distinct"]


@pytest.mark.parametrize(("order", "mixed"), [*((order, False) for order in ORDERS), ("shuffled", True), ("balanced", True)])
def test_the_stream_is_the_same_for_any_number_of_ranks_and_from_any_step(
    tmp_path: Path, order: OrderName, mixed: bool
) -> None:
    samples = listed(61, tmp_path, label=LABELS)
    if mixed:
        samples = SampleList.mix([(samples, 0.7), (listed(10, tmp_path, label=np.arange(10) % 2), 0.3)])
    whole = stream(samples, order, 6000)
    for world_size in (1, 2, 3):
        loaders = [
            Loader(samples, VIEWS, seed=1, global_batch_size=6, order=order, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        for first in (0, 7, 703, 999):  # on both sides of what a loader works out at once
            together = np.stack([loader._indices(first) for loader in loaders], axis=1).ravel()
            assert together.tolist() == whole[6 * first : 6 * first + 6].tolist()
    assert whole.tolist() != stream(samples, order, 6000, seed=2).tolist()


def test_balanced_shows_every_label_equally_often_and_its_samples_in_turn(tmp_path: Path) -> None:
    repeats = np.where(np.arange(61) == 41, 3, 1).astype(np.int32)
    repeats[60] = 0  # the only one of its label
    samples = listed(61, tmp_path, label=LABELS, repeats=repeats)
    shown = stream(samples, "balanced", 4 * 440)
    labels = LABELS[shown]
    assert all(set(turn) == {5, 2, 7, 0} for turn in labels.reshape(-1, 4).tolist())
    counts = np.bincount(shown, minlength=61)
    assert counts[:40].tolist() == [11] * 40  # 440 times 40 samples
    assert counts[41:42] == 3 * counts[40:41] == 3 * 40
    assert counts[49:53].tolist() == [110] * 4
    cycles = shown[labels == 7].reshape(-1, 4)
    assert all(sorted(cycle) == [49, 50, 51, 52] for cycle in cycles.tolist())
    assert len({tuple(cycle) for cycle in cycles.tolist()}) == 24


def test_distinct_repeats_no_label_in_a_step_unless_it_must(tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    label = draws.integers(0, 40, 1000)
    assert np.bincount(label).max() <= 62
    samples = listed(1000, tmp_path, label=label)
    loader = Loader(samples, VIEWS, seed=1, global_batch_size=16, order="distinct")
    assert loader.epoch_size == 62 * 16
    shown = stream(samples, "distinct", 8 * 992, batch=16)
    assert all(len(set(step)) == 16 for step in label[shown].reshape(-1, 16).tolist())
    left_out = [set(range(1000)) - set(epoch) for epoch in shown.reshape(8, -1).tolist()]
    assert all(len(rows) == 8 for rows in left_out)
    assert len(set.union(*left_out)) > 40
    # 40 of 61 have one label: of each step's six, as many as their share, never a step of one label alone.
    crowded = LABELS[stream(listed(61, tmp_path, label=LABELS), "distinct", 600)].reshape(-1, 6)
    assert set((crowded == 5).sum(1).tolist()) <= {3, 4}
    assert max((crowded == other).sum(1).max() for other in (2, 7, 0, -1)) == 1


def test_a_mixture_shows_each_source_by_its_weight(tmp_path: Path) -> None:
    small, large = listed(7, tmp_path), listed(900, tmp_path)
    samples = SampleList.mix([(small, 1), (large, 3), (listed(5, tmp_path), 0)])
    shown = stream(samples, "shuffled", 30_000)
    assert (shown < 7).reshape(3, -1).sum(1).tolist() == [2500] * 3
    assert shown.max() == 906
    assert np.ptp(np.bincount(shown[shown < 7])) <= 1
    assert np.ptp(np.bincount(shown[shown >= 7])[7:]) <= 1
    shares = (shown < 7).reshape(-1, 100).mean(1)
    assert 0.1 < shares.min() < shares.max() < 0.4
    assert samples.row_id[shown[shown >= 7]].max() == 899


def test_what_an_order_lacks_is_said(tmp_path: Path) -> None:
    plain, labelled = listed(20, tmp_path), listed(5, tmp_path, label=np.arange(5))
    with pytest.raises(DataError, match=r"order balanced needs labels.*train.label"):
        stream(plain, "balanced", 1)
    with pytest.raises(DataError, match="at least one whole step"):
        stream(labelled, "distinct", 1)
    with pytest.raises(DataError, match="one training list"):
        stream(SampleList.mix([(plain, 1), (plain, 1)]), "distinct", 1)
    with pytest.raises(DataError, match="weights"):
        stream(SampleList.mix([(plain, 0), (plain, 0)]), "shuffled", 1)
