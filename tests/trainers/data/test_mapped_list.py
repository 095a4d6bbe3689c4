"""Training lists that processes share: equal to those in memory, mapped from one file, whole after any kill."""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curation.base.errors import DataError
from tests.helpers import on_ranks
from tests.trainers.data.test_loader import VIEWS
from trainers.data import mapped_list
from trainers.data.config import OrderName
from trainers.data.loader import Loader
from trainers.data.mapped_list import TrainingList, map_lists
from trainers.data.samples import ROWS_PER_EPOCH, SampleList

COLUMNS = ("offset", "size", "crc32", "row_id", "label", "repeats")


def write_list(path: Path, num: int = 700, *, first: int = 0, repeats: bool = True, plain: bool = False, seed: int = 0) -> Path:
    """A training list in row groups of 100, with labels, of shards that exist but are empty."""
    draws = np.random.default_rng(seed)
    rows = first + np.arange(num)
    names = [f"{path.stem}-{number}.tar" for number in draws.permutation(8)]
    for name in names:
        (path.parent / name).touch()
    shard = pa.array([names[number] for number in rows * 8 // (first + num)])
    columns = {
        "row_id": pa.array(rows),
        "shard": shard if plain else shard.dictionary_encode(),
        "offset": pa.array(rows * 512),
        "size": pa.array(draws.integers(1, 10**6, num)),
        "crc32": pa.array(draws.integers(0, 2**32, num).astype(np.uint32)),
        "level_1": pa.array(draws.integers(0, 30, num).astype(np.int32)),
        "weight": pa.array(draws.random(num)),
    }
    if repeats:
        columns["repeats"] = pa.array(draws.integers(0, 4, num).astype(np.int32))
    table = pa.table(columns).replace_schema_metadata({ROWS_PER_EPOCH: str(num // 2)} if plain else None)
    pq.write_table(table, path, row_group_size=100)
    return path


def assert_equal(found: SampleList, expected: SampleList) -> None:
    assert len(found) == len(expected)
    assert found.per_epoch == expected.per_epoch
    assert [found.shards[i] for i in found.shard] == [expected.shards[i] for i in expected.shard]
    for name in COLUMNS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        assert other is None or (one.dtype == other.dtype and np.array_equal(one, other)), name
    assert found.num_entries == expected.num_entries
    assert [weight for _, weight in found.parts] == [weight for _, weight in expected.parts]
    for (part, _), (other_part, _) in zip(found.parts, expected.parts, strict=True):
        assert_equal(part, other_part)


def order(samples: SampleList, name: OrderName) -> list[int]:
    loader = Loader(samples, VIEWS, seed=1, global_batch_size=10, order=name)
    rows = loader.order(np.arange(5_000))
    assert rows.dtype == np.int64
    return [loader.epoch_size, *rows.tolist()]


@pytest.mark.parametrize("repeats", [True, False], ids=["repeats", "each once"])
@pytest.mark.parametrize("plain", [True, False], ids=["strings", "dictionary"])
def test_a_mapped_list_equals_the_list_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, repeats: bool, plain: bool
) -> None:
    monkeypatch.setattr(mapped_list, "_BATCH_ROWS", 64)
    path = write_list(tmp_path / "list.parquet", repeats=repeats, plain=plain)
    mapped = map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch", "level_1")
    memory = SampleList.read(path, tmp_path, "level_1")
    assert_equal(mapped, memory)
    for name in ("shuffled", "balanced", "distinct"):
        assert order(mapped, name) == order(memory, name)  # type: ignore[arg-type]
    draws = np.random.default_rng(1).random(100) * memory.num_entries
    assert np.array_equal(mapped.rows_of_entries(draws), memory.rows_of_entries(draws))


@pytest.mark.parametrize("repeats", [True, False], ids=["some repeats", "each once"])
def test_a_mapped_mixture_equals_the_mixture_in_memory(tmp_path: Path, repeats: bool) -> None:
    first = write_list(tmp_path / "first.parquet", 700, repeats=repeats)
    second = write_list(tmp_path / "second.parquet", 90, first=5000, repeats=False, seed=1, plain=True)
    lists = [TrainingList(first, tmp_path, 0.7), TrainingList(second, tmp_path, 0.3)]
    mapped = map_lists(lists, tmp_path / "scratch", "level_1")
    memory = SampleList.mix([(SampleList.read(one.path, tmp_path, "level_1"), one.weight) for one in lists])
    assert_equal(mapped, memory)
    for name in ("shuffled", "balanced"):
        assert order(mapped, name) == order(memory, name)  # type: ignore[arg-type]


def test_a_repeats_column_of_ones_takes_no_file_and_no_memory(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.parquet", repeats=False)
    table = pq.read_table(path)
    pq.write_table(table.append_column("repeats", pa.array(np.ones(len(table), np.int32))), path)
    mapped = map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch")
    assert mapped.repeats is None
    assert SampleList.read(path, tmp_path).repeats is None
    assert order(mapped, "shuffled") == order(SampleList.read(path, tmp_path), "shuffled")
    [directory] = (tmp_path / "scratch").glob("list-*")
    assert {file.name for file in directory.iterdir()} == {
        "lists.json", "shard.npy", "offset.npy", "size.npy", "crc32.npy", "row_id.npy"
    }  # fmt: skip


def test_an_empty_list_can_be_mapped_and_is_refused_by_the_loader(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.parquet")
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="nothing to train on"):
        order(map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch"), "shuffled")


def maps_of_this_process(directory: Path) -> dict[str, tuple[str, str]]:
    """File name to permissions and inode of what this process maps from `directory`."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    return {Path(line[5]).name: (line[1], line[4]) for line in lines if len(line) > 5 and line[5].startswith(str(directory))}


def _on_a_rank(rank: int, directory: Path) -> None:
    samples = map_lists([TrainingList(directory / "list.parquet", directory)], directory / "scratch", "level_1")
    loader = Loader(samples, VIEWS, seed=1, global_batch_size=10, order="balanced")
    assert len(loader.order(np.arange(100))) == 100
    assert not samples.offset.flags.writeable
    lines = [f"{name} {permissions} {inode}\n" for name, (permissions, inode) in maps_of_this_process(directory).items()]
    (directory / f"rank-{rank}").write_text("".join(sorted(lines)))


def test_two_ranks_map_the_same_files_read_only(tmp_path: Path) -> None:
    write_list(tmp_path / "list.parquet")
    on_ranks(_on_a_rank, 2, tmp_path)
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in range(2))
    assert first == second
    lines = [line.split() for line in first.splitlines()]
    assert {"row_id.npy", "repeats.npy", "label.npy", "rows.npy", "ends.npy"} <= {name for name, _, _ in lines}
    assert {permissions for _, permissions, _ in lines} == {"r--s"}


def _map_and_die(directory: Path, after: int) -> None:
    def batches(path: Path, batches: object) -> object:
        for number, batch in enumerate(batches):  # type: ignore[call-overload]
            if number == after:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch

    mapped_list._BATCH_ROWS = 64
    mapped_list._batches = batches  # type: ignore[assignment]
    map_lists([TrainingList(directory / "list.parquet", directory)], directory / "scratch")


def test_a_kill_while_the_files_are_written_leaves_nothing_half(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.parquet")
    context = multiprocessing.get_context("forkserver")
    for after in (0, 4):
        process = context.Process(target=_map_and_die, args=(tmp_path, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not list((tmp_path / "scratch").glob("list-*"))
        assert len(list((tmp_path / "scratch").glob(".list-*.tmp-*"))) == 1
    mapped = map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch")
    assert_equal(mapped, SampleList.read(path, tmp_path))
    assert not list((tmp_path / "scratch").glob(".list-*.tmp-*"))


def _map_slowly(directory: Path) -> None:
    write, path = mapped_list._write, directory / "list.parquet"

    def slow(temporary: Path, lists: list[TrainingList], label: str | None) -> None:
        (directory / f"written-by-{os.getpid()}").touch()
        time.sleep(0.3)
        write(temporary, lists, label)

    mapped_list._write = slow  # type: ignore[assignment]
    assert_equal(map_lists([TrainingList(path, directory)], directory / "scratch"), SampleList.read(path, directory))


def test_processes_that_ask_at_once_write_it_once(tmp_path: Path) -> None:
    write_list(tmp_path / "list.parquet")
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_map_slowly, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(tmp_path.glob("written-by-*"))) == 1


def test_a_list_of_other_content_is_not_mistaken(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.parquet")
    before, stat = map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch"), path.stat()
    table = pq.read_table(path)
    offsets = table["offset"].to_numpy()[::-1]
    table = table.set_column(table.column_names.index("offset"), "offset", pa.array(offsets))
    pq.write_table(table, path, row_group_size=100)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch")
    assert np.array_equal(after.offset, offsets)
    assert np.array_equal(before.offset, offsets[::-1])
    assert map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch", "level_1").label is not None


def test_what_cannot_be_mapped_is_said(tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.parquet")
    with pytest.raises(DataError, match=r"lacks the columns \['level_9'\]"):
        map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch", "level_9")
    with pytest.raises(DataError, match="weights"):
        map_lists([TrainingList(path, tmp_path, 0), TrainingList(path, tmp_path, 0)], tmp_path / "scratch")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="could not be written"):
        map_lists([TrainingList(path, tmp_path)], tmp_path / "file")
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match="no readable Parquet file"):
        map_lists([TrainingList(path, tmp_path)], tmp_path / "scratch")
