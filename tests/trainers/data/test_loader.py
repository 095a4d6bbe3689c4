import io
import tarfile
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.base.errors import DataError
from trainers.data import loader as loading
from trainers.data.config import ViewsConfig
from trainers.data.loader import Batch, Loader
from trainers.data.samples import ROWS_PER_EPOCH, SampleList
from trainers.data.shard_reader import ShardReader

VIEWS = ViewsConfig(num_local=1, global_size=8, local_size=8)


def add_image(tar: tarfile.TarFile, row: int, pixels: np.ndarray, kind: str = "PNG") -> dict[str, object]:
    """Put an image into a shard; its line of a training list."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    member = tarfile.TarInfo(f"{row}.{kind.lower()}")
    member.size = buffer.tell()
    place = {"shard": Path(str(tar.name)).name, "offset": tar.offset + 512, "size": member.size}
    line = {"row_id": row, **place, "crc32": zlib.crc32(buffer.getvalue())}
    buffer.seek(0)
    tar.addfile(member, buffer)
    return line


def shards(directory: Path, num: int = 10, num_shards: int = 3, repeats: list[int] | None = None) -> SampleList:
    """Images whose red channel is ten times their row id."""
    rows = []
    for shard in range(num_shards):
        with tarfile.open(directory / f"{shard}.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
            rows += [
                add_image(tar, row, np.full((12, 12, 3), [row * 10, 0, 0], dtype=np.uint8))
                for row in range(shard, num, num_shards)
            ]
    table = pa.Table.from_pylist(sorted(rows, key=lambda row: row["row_id"]))
    if repeats:
        table = table.append_column("repeats", pa.array(repeats, pa.int32()))
    pq.write_table(table, directory / "list.parquet")
    return SampleList.read(directory / "list.parquet", directory)


def load(samples: SampleList, rank: int, world_size: int, first: int = 0, steps: int = 6, **options: object) -> list[Batch]:
    loader = Loader(samples, VIEWS, seed=1, global_batch_size=4, rank=rank, world_size=world_size, **options)  # type: ignore[arg-type]
    return list(loader.batches(first, steps))


def test_reads_the_right_bytes(tmp_path: Path) -> None:
    samples = shards(tmp_path)
    for batch in load(samples, 0, 1):
        assert batch.global_crops.shape == (2, 4, 3, 8, 8)
        assert batch.local_crops.shape == (1, 4, 3, 8, 8)
        assert batch.global_crops[0, :, 0, 0, 0].tolist() == (batch.row_id * 10).tolist()


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_global_order_and_the_views_do_not_depend_on_ranks_or_workers(
    tmp_path: Path, world_size: int, workers: int
) -> None:
    samples = shards(tmp_path)
    alone = load(samples, 0, 1)
    ranks = [load(samples, rank, world_size, workers=workers) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        together = np.stack([rank[step].row_id for rank in ranks], axis=1).ravel()
        assert together.tolist() == batch.row_id.tolist()
        draws = np.stack([rank[step].draws.numbers for rank in ranks], axis=1).reshape(batch.draws.numbers.shape)
        assert np.array_equal(draws, batch.draws.numbers)


def test_resuming_at_a_step_gives_the_rest(tmp_path: Path) -> None:
    samples = shards(tmp_path)
    whole, rest = load(samples, 0, 1, 0, 9), load(samples, 0, 1, 5, 4)
    assert [batch.row_id.tolist() for batch in whole[5:]] == [batch.row_id.tolist() for batch in rest]
    assert all((a.global_crops == b.global_crops).all() for a, b in zip(whole[5:], rest, strict=True))


def test_an_epoch_may_show_a_fresh_part_of_the_list(tmp_path: Path) -> None:
    shards(tmp_path)
    path = tmp_path / "list.parquet"
    pq.write_table(pq.read_table(path).replace_schema_metadata({ROWS_PER_EPOCH: "4"}), path)
    samples = SampleList.read(path, tmp_path)
    assert Loader(samples, VIEWS, seed=1, global_batch_size=4).epoch_size == 4
    epochs = [set(batch.row_id.tolist()) for batch in load(samples, 0, 1, 0, 12)]
    assert all(len(epoch) == 4 for epoch in epochs)
    assert set.union(*epochs) == set(range(10))
    assert len({frozenset(epoch) for epoch in epochs}) > 6


def test_an_epoch_shows_each_sample_as_often_as_it_repeats_and_epochs_differ(tmp_path: Path) -> None:
    repeats = [1, 0, 3, 1, 2, 1, 1, 1, 1, 1]
    samples = shards(tmp_path, repeats=repeats)
    shown = np.concatenate([batch.row_id for batch in load(samples, 0, 1, 0, 6)])
    first, second = shown[:12], shown[12:24]
    assert np.bincount(first, minlength=10).tolist() == repeats
    assert np.bincount(second, minlength=10).tolist() == repeats
    assert first.tolist() != second.tolist()


def test_ranks_that_do_not_divide_the_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="multiple of the 3 ranks"):
        load(shards(tmp_path), 0, 3)


def test_an_empty_list_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to train on"):
        load(shards(tmp_path, repeats=[0] * 10), 0, 1)


def spoil(samples: SampleList, *rows: int) -> None:
    """Overwrite the images of `rows` with zeros."""
    for row in rows:
        with open(samples.shards[samples.shard[row]], "r+b") as file:
            file.seek(samples.offset[row])
            file.write(bytes(samples.size[row]))


def with_checksum_of_what_is_there(samples: SampleList, row: int) -> SampleList:
    """Where `row` was spoiled, nothing but decoding it can tell."""
    crc32 = samples.crc32.copy()
    crc32[row] = zlib.crc32(bytes(samples.size[row]))
    return replace(samples, crc32=crc32)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("max_resident_bytes", [0, 2**20])
def test_bad_samples_are_replaced_alike_on_any_number_of_ranks_and_told(
    tmp_path: Path, world_size: int, max_resident_bytes: int
) -> None:
    read = partial(load, max_resident_bytes=max_resident_bytes)
    samples = shards(tmp_path)
    good = [batch.row_id.tolist() for batch in read(samples, 0, 1)]
    spoil(samples, 3, 7)
    samples = with_checksum_of_what_is_there(samples, 7)
    (tmp_path / "2.tar").write_bytes((tmp_path / "2.tar").read_bytes()[: samples.offset[8] + 9])
    alone = read(samples, 0, 1)
    for before, batch in zip(good, alone, strict=True):
        assert not {3, 7, 8} & set(batch.row_id.tolist())
        assert batch.replaced.tolist() == [row for row in before if row in (3, 7, 8)]
        assert batch.global_crops[0, :, 0, 0, 0].tolist() == (batch.row_id * 10).tolist()
        kept = [(a, b) for a, b in zip(before, batch.row_id.tolist(), strict=True) if a not in (3, 7, 8)]
        assert all(a == b for a, b in kept)
    ranks = [read(samples, rank, world_size) for rank in range(world_size)]
    for step, batch in enumerate(alone):
        together = np.stack([rank[step].row_id for rank in ranks], axis=1).ravel()
        assert together.tolist() == batch.row_id.tolist()
    loader = Loader(samples, VIEWS, seed=1, global_batch_size=4, max_resident_bytes=max_resident_bytes)
    assert sum(len(batch.replaced) for batch in loader.batches(0, 6)) == loader.replaced > 0
    assert loader.shown == 24


def test_too_many_bad_samples_stop_the_training_and_name_one(tmp_path: Path) -> None:
    samples = shards(tmp_path)
    spoil(samples, 3)
    with pytest.raises(DataError, match=r"max_bad_fraction 0.*Sample 3 at byte \d+ of .*0\.tar.*do not match their checksum"):
        load(samples, 0, 1, max_bad_fraction=0)
    with pytest.raises(DataError, match=r"For example: Sample 3 .*corrupt image.*Its bytes are those that were sharded"):
        load(with_checksum_of_what_is_there(samples, 3), 0, 1, max_bad_fraction=0)
    with pytest.raises(DataError, match=r"51 of 508 samples could not be read, more than train.max_bad_fraction 0.05"):
        load(samples, 0, 1, steps=600, max_bad_fraction=0.05)
    spoil(samples, *range(10))
    with pytest.raises(DataError, match="cannot be read"):
        load(samples, 0, 1, max_bad_fraction=1)


def test_a_bit_that_changed_makes_a_sample_bad(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        samples = SampleList.of(pa.Table.from_pylist([add_image(tar, 0, np.zeros((9, 9, 3), np.uint8), "PPM")]), tmp_path)
    assert not ShardReader(samples).image(0).any()
    with open(tmp_path / "0.tar", "r+b") as file:
        file.seek(int(samples.offset[0] + samples.size[0] - 1))
        file.write(b"\1")
    with pytest.raises(DataError, match=r"Sample 0 at byte 512 of .*0\.tar.*do not match their checksum.*Restore it"):
        ShardReader(samples).image(0)


def test_a_missing_shard_is_named_at_once(tmp_path: Path) -> None:
    samples = shards(tmp_path)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing, such as .*1\.tar"):
        Loader(samples, VIEWS, seed=1, global_batch_size=4)


def test_the_time_waited_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(shards(tmp_path), VIEWS, seed=1, global_batch_size=4)
    clock = iter(range(100))
    monkeypatch.setattr(loading.time, "perf_counter", lambda: next(clock))
    list(loader.batches(0, 3))
    assert loader.waited == 3


def test_a_list_without_its_columns_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"row_id": [1]}), tmp_path / "list.parquet")
    with pytest.raises(DataError, match="lacks the columns"):
        SampleList.read(tmp_path / "list.parquet", tmp_path)
    (tmp_path / "list.parquet").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="no readable Parquet"):
        SampleList.read(tmp_path / "list.parquet", tmp_path)
