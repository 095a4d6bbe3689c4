"""Shards that are in an object store: here a web server, which all processes reach, and the file:// of fsspec, which lists."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch

from curation.base.errors import DataError
from tests.trainers.data.test_loader import VIEWS, load, shards, spoil
from trainers.data import shard_reader, stores
from trainers.data.loader import Loader
from trainers.data.resident import ResidentImages
from trainers.data.samples import SHARDS_URL, SampleList
from trainers.evaluation.embed import squares


class Server(ThreadingHTTPServer):
    """Serves ranges of the files in a directory, and can be told to do so badly."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.asked, self.failing, self.whole = 0, 0, False
        """Requests so far; how many to come it answers with 503; whether it answers with whole files."""
        self.lock = threading.Lock()
        self.together: threading.Barrier | None = None

    def wait_for(self, number: int, *, after: int = 0) -> threading.Barrier:
        """Let the next `number` requests wait for one another; the barrier is broken if they do not come together."""
        self.together, self.asked = threading.Barrier(number, timeout=30), -after
        return self.together

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.asked += 1
            asked = server.asked
            failing = server.failing > 0
            server.failing -= failing
        if server.together and 0 < asked <= server.together.parties:
            with suppress(threading.BrokenBarrierError):
                server.together.wait()
        file = server.directory / self.path[1:]
        content = file.read_bytes() if file.is_file() else b""
        status = 206 if file.is_file() else 404
        if not server.whole:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            status = 416 if status == 206 and first >= len(content) else status
            content = content[first : last + 1]
        self.send_response(503 if failing else status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def moved(samples: SampleList, directory: Path, url: str) -> SampleList:
    """The same list, read again after it was said that its shards are at `url`."""
    (directory / SHARDS_URL).write_text(f"{url}/\n" if url else "")
    there = SampleList.read(directory / "list.parquet", directory)
    assert [shard.rpartition("/")[0] for shard in there.shards] == [url] * len(samples.shards)
    return there


@pytest.mark.parametrize("max_resident_bytes", [0, 2**20])
def test_a_store_gives_the_same_batches_as_a_directory(tmp_path: Path, server: Server, max_resident_bytes: int) -> None:
    samples = shards(tmp_path)
    spoil(samples, 3)
    here = load(samples, 0, 1)
    there = load(moved(samples, tmp_path, server.url), 0, 1, max_resident_bytes=max_resident_bytes)
    for one, other in zip(here, there, strict=True):
        assert one.row_id.tolist() == other.row_id.tolist()
        assert one.replaced.tolist() == other.replaced.tolist()
        assert np.array_equal(one.global_crops[0, :, 0, 0], other.global_crops[0, :, 0, 0])
    assert sum(len(batch.replaced) for batch in there)


def test_samples_are_asked_for_together(tmp_path: Path, server: Server) -> None:
    there = moved(shards(tmp_path), tmp_path, server.url)
    loader = Loader(there, VIEWS, seed=1, global_batch_size=4, workers=1)
    barrier = server.wait_for(4)
    next(loader.batches(0, 1))
    assert not barrier.broken
    barrier = server.wait_for(10)
    assert squares(there, np.arange(10), 8)[:, 0, 0, 0].tolist() == list(range(0, 100, 10))
    assert not barrier.broken
    barrier = server.wait_for(10, after=1)  # the first alone says how large all are
    images = ResidentImages.of(there, 2**20, torch.device("cpu"), 1)
    assert images is not None
    assert images.pixels[:, 0, 0, 0].tolist() == list(range(0, 100, 10))
    assert not barrier.broken


def test_a_cut_shard_is_as_bad_in_a_store_as_in_a_directory(tmp_path: Path, server: Server) -> None:
    samples = shards(tmp_path)
    (tmp_path / "2.tar").write_bytes((tmp_path / "2.tar").read_bytes()[: samples.offset[5] + 9])
    here, there = load(samples, 0, 1), load(moved(samples, tmp_path, server.url), 0, 1)
    assert [batch.row_id.tolist() for batch in here] == [batch.row_id.tolist() for batch in there]
    assert {5, 8} == {row for batch in there for row in batch.replaced.tolist()}


def test_a_store_that_fails_for_a_moment_changes_nothing(tmp_path: Path, server: Server) -> None:
    samples = shards(tmp_path)
    here = load(samples, 0, 1, steps=2)
    loader = Loader(moved(samples, tmp_path, server.url), VIEWS, seed=1, global_batch_size=4)
    server.failing = 9
    there = list(loader.batches(0, 2))
    assert server.failing == 0
    assert [batch.row_id.tolist() for batch in there] == [batch.row_id.tolist() for batch in here]
    assert not any(len(batch.replaced) for batch in there)


def test_a_store_that_goes_away_is_waited_for_once(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = Loader(moved(shards(tmp_path), tmp_path, server.url), VIEWS, seed=1, global_batch_size=4)
    waits: list[float] = []
    monkeypatch.setattr(shard_reader.time, "sleep", waits.append)
    server.failing, server.asked = 10**6, 0
    with pytest.raises(DataError, match="cannot be read, tried 5 times"):
        list(loader.batches(0, 3))
    assert waits == [1, 2, 4, 8]
    assert server.asked <= 3 * 4 + 5  # each sample of three steps by the processes, then one by the training


def test_a_store_that_does_not_answer_is_told(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    there = moved(shards(tmp_path), tmp_path, server.url)
    monkeypatch.setattr(shard_reader.time, "sleep", lambda _: None)
    server.failing = 100
    with pytest.raises(DataError, match=r"0\.tar cannot be read, tried 5 times: .*503.*run again, which continues"):
        Loader(there, VIEWS, seed=1, global_batch_size=4)
    server.failing, server.whole = 0, True
    with pytest.raises(DataError, match=r"bytes came where \d+ were requested: this server does not support ranges"):
        Loader(there, VIEWS, seed=1, global_batch_size=4)


def test_a_shard_that_a_store_lacks_is_named(tmp_path: Path, server: Server) -> None:
    samples = shards(tmp_path)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing, such as file://.*/1\.tar"):
        load(moved(samples, tmp_path, f"file://{tmp_path}"), 0, 1)
    with pytest.raises(DataError, match=r"3 of 3 shards are missing"):
        load(moved(samples, tmp_path, f"file://{tmp_path}/nowhere"), 0, 1)
    with pytest.raises(DataError, match=r"Shard http://.*/1\.tar is not there. Restore it"):
        load(moved(samples, tmp_path, server.url), 0, 1)


@pytest.mark.parametrize("url", ["ftq://server/pool", "sftp://pool"])
def test_a_store_that_nothing_reads_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match=f"{url} cannot be read here"):
        load(moved(shards(tmp_path), tmp_path, url), 0, 1)


def test_a_place_that_is_no_url_is_refused(tmp_path: Path) -> None:
    samples = shards(tmp_path)
    (tmp_path / SHARDS_URL).touch()
    with pytest.raises(DataError, match=r"shards\.url must say where the shards are, such as s3://bucket/folder; found ''"):
        moved(samples, tmp_path, "")


def test_nothing_is_asked_for_no_bytes(server: Server) -> None:
    assert stores.fetch([stores.Range(f"{server.url}/x", 5, 0)]) == [b""]
    assert server.asked == 0
