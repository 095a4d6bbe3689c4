"""Shards that are in an object store: here a web server, which all processes reach, and the file:// of fsspec, which lists."""

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from curation.errors import ConfigError, DataError
from tests.trainers.test_loader import load, shards, spoil
from trainers import samples as sampling
from trainers import stores
from trainers.embed import squares
from trainers.samples import SHARDS_URL, SampleList, ShardReader


class Server(ThreadingHTTPServer):
    """Serves ranges of the files in a directory, and can be told to do so badly."""

    def __init__(self, directory: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.directory = directory
        self.failing, self.whole = 0, False
        """How many requests to come it answers with 503; whether it answers with whole files."""
        self.open, self.most_open = 0, 0
        """Requests that are being answered."""
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        with server.lock:
            server.open += 1
            server.most_open = max(server.open, server.most_open)
            failing = server.failing > 0
            server.failing -= failing
        time.sleep(0.02)
        file = server.directory / self.path[1:]
        content = file.read_bytes() if file.is_file() else b""
        if not server.whole:
            first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
            content = content[first : last + 1]
        self.send_response(503 if failing else 206 if file.is_file() else 404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        with server.lock:
            server.open -= 1

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
    (directory / SHARDS_URL).write_text(f"{url}/\n")
    there = SampleList.read(directory / "list.parquet", directory)
    assert [shard.rpartition("/")[0] for shard in there.shards] == [url] * len(samples.shards)
    return there


@pytest.mark.parametrize("most_resident_bytes", [0, 2**20])
def test_a_store_gives_the_same_batches_as_a_directory(tmp_path: Path, server: Server, most_resident_bytes: int) -> None:
    samples = shards(tmp_path)
    spoil(samples, 3)
    here = load(samples, 0, 1)
    there = load(moved(samples, tmp_path, server.url), 0, 1, most_resident_bytes=most_resident_bytes)
    for one, other in zip(here, there, strict=True):
        assert one.row_id.tolist() == other.row_id.tolist()
        assert one.replaced.tolist() == other.replaced.tolist()
        assert np.array_equal(one.global_crops[0, :, 0, 0], other.global_crops[0, :, 0, 0])
    assert sum(len(batch.replaced) for batch in there)


def test_samples_are_asked_for_together(tmp_path: Path, server: Server) -> None:
    there = moved(shards(tmp_path), tmp_path, server.url)
    reader = ShardReader(there)
    reader.ahead(range(8))
    assert server.most_open >= 4
    server.failing = 100
    assert [reader.image(index)[0, 0, 0] for index in range(8)] == list(range(0, 80, 10))
    server.failing = 0
    assert squares(there, np.arange(10), 8)[:, 0, 0, 0].tolist() == list(range(0, 100, 10))


def test_a_store_that_fails_for_a_moment_changes_nothing(tmp_path: Path, server: Server) -> None:
    samples = shards(tmp_path)
    here = load(samples, 0, 1, steps=2)
    server.failing = 3
    there = load(moved(samples, tmp_path, server.url), 0, 1, steps=2)
    assert server.failing == 0
    assert [batch.row_id.tolist() for batch in there] == [batch.row_id.tolist() for batch in here]
    assert not any(len(batch.replaced) for batch in there)


def test_a_store_that_does_not_answer_is_told(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    there = moved(shards(tmp_path), tmp_path, server.url)
    waits: list[float] = []
    monkeypatch.setattr(sampling.time, "sleep", waits.append)
    server.failing = 100
    with pytest.raises(DataError, match=r"0\.tar cannot be read, tried 5 times: .*503.*run again, which continues"):
        ShardReader(there).read(0)
    assert [wait for wait in waits if wait >= 1] == [1, 2, 4, 8]
    server.failing, server.whole = 0, True
    with pytest.raises(DataError, match=r"bytes came where \d+ were asked for"):
        ShardReader(there).read(0)


def test_a_shard_that_a_store_lacks_is_named(tmp_path: Path, server: Server) -> None:
    samples = shards(tmp_path)
    (tmp_path / "1.tar").unlink()
    with pytest.raises(DataError, match=r"1 of 3 shards are missing, such as file://.*/1\.tar"):
        load(moved(samples, tmp_path, f"file://{tmp_path}"), 0, 1)
    with pytest.raises(DataError, match=r"3 of 3 shards are missing"):
        load(moved(samples, tmp_path, f"file://{tmp_path}/nowhere"), 0, 1)
    with pytest.raises(DataError, match=r"Shard http://.*/1\.tar is not there. Restore it"):
        load(moved(samples, tmp_path, server.url), 0, 1)


def test_a_store_that_nothing_reads_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ftq:// cannot be read here: Protocol not known"):
        load(moved(shards(tmp_path), tmp_path, "ftq://server/pool"), 0, 1)


def test_nothing_is_asked_for_no_bytes(server: Server) -> None:
    assert stores.fetch([stores.Range(f"{server.url}/x", 5, 0)]) == [b""]
    assert server.most_open == 0
