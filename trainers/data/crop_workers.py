"""Worker processes that decode images and cut crops: threads would hold the interpreter, which the training needs as well.

The samples to read, their random draws and the finished crops are in memory that the processes share; pipes carry only row
numbers. A server process, started when it is first needed, has imported everything and forks the workers; they end together
with the training that they serve.
"""

import atexit
import json
import math
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from queue import Queue

import numpy as np
import torch

from curation.base.errors import DataError
from trainers.data.samples import SampleList
from trainers.data.shard_reader import ShardReader
from trainers.data.stores import is_url
from trainers.data.views import Draws, cut

_PAIR = struct.Struct("=2q")
_PIECES = 4
"""Pieces of a batch per process: few enough to be worth a message, many enough that no process waits long for another."""
_READ_TOGETHER = 16
"""Samples of a piece that are read before the first of them is decoded."""
_FETCHED = 8
"""Number of pieces that a process fetches from a store at the same time."""
_IGNORED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that reach all processes of a job, although the training takes one more step first, which needs its samples."""


@dataclass(frozen=True)
class SharedBuffers:
    """The layout of the shared memory: a row for each of `batch_size` samples in each of `slots`, then their crops."""

    shards: Sequence[str]
    slots: int
    batch_size: int
    views: Sequence[tuple[int, int]]
    """Number and size of the global and of the local crops."""

    @cached_property
    def _row(self) -> np.dtype:
        """The record of a sample: its place in the shards, its random draws, and whether it is bad."""
        numbers, sides = Draws.shapes(sum(count for count, _ in self.views))
        place = [("shard", "i4"), ("offset", "i8"), ("size", "i8"), ("crc32", "u4"), ("bad", "?")]
        return np.dtype([*place, ("numbers", "f8", numbers), ("sides", "f8", sides)], align=True)

    @cached_property
    def _shapes(self) -> list[tuple[int, ...]]:
        return [(self.slots, count, self.batch_size, size, size, 3) for count, size in self.views]

    @property
    def num_bytes(self) -> int:
        return self.slots * self.batch_size * self._row.itemsize + sum(map(math.prod, self._shapes))

    def arrays(self, memory: mmap.mmap) -> tuple[np.ndarray, list[np.ndarray]]:
        """The rows (R,), R = slots * batch_size, and the crops, global and local, (slots, V, B, S, S, 3) uint8."""
        rows = np.ndarray(self.slots * self.batch_size, self._row, memory)
        crops, end = [], rows.nbytes
        for shape in self._shapes:
            crops.append(np.ndarray(shape, np.uint8, memory, end))
            end += crops[-1].nbytes
        return rows, crops


class CropWorkers:
    """Processes that cut the crops of samples into shared memory, into several slots at the same time."""

    def __init__(self, buffers: SharedBuffers, processes: int) -> None:
        self._size = buffers.batch_size
        self._pieces = min(_PIECES * processes, buffers.batch_size)
        self._unfinished = [0] * buffers.slots
        described = json.dumps(asdict(buffers)).encode()
        memory = _unnamed_file()
        tasks, self._tasks = os.pipe()
        self._done, done = os.pipe()
        try:
            os.truncate(memory, buffers.num_bytes)
            os.pwrite(memory, described, buffers.num_bytes)
            socket.send_fds(server(), [_PAIR.pack(buffers.num_bytes, processes)], [memory, tasks, done])
            self._rows, self._crops = buffers.arrays(mmap.mmap(memory, 0))
        finally:
            for descriptor in (memory, tasks, done):
                os.close(descriptor)

    def begin(self, slot: int, samples: SampleList, indices: np.ndarray, draws: Draws) -> None:
        """Start cutting the samples at `indices` (B,) into `slot`."""
        first, end = slot * self._size, (slot + 1) * self._size
        rows = self._rows[first:end]
        for name in ("shard", "offset", "size", "crc32"):
            rows[name] = getattr(samples, name)[indices]
        rows["numbers"], rows["sides"], rows["bad"] = draws.numbers, draws.sides, False
        self._unfinished[slot] = self._pieces
        with suppress(BrokenPipeError):  # if the workers are gone, `crops` says why
            for piece in pairwise(np.linspace(first, end, self._pieces + 1).astype(int).tolist()):
                os.write(self._tasks, _PAIR.pack(*piece))

    def crops(self, slot: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Wait for the crops in `slot`: global and local, (V, B, S, S, 3) uint8, and the places (M,) int64 of bad samples.

        Raises DataError if a worker process has died.
        """
        while self._unfinished[slot]:
            record = os.read(self._done, _PAIR.size)
            done, code = _PAIR.unpack(record) if record else (-1, 1)
            if done < 0:
                raise DataError(
                    f"A process that decodes images {_fate(code)}. Its output, if any, is above. If the machine ran out of "
                    "memory, lower train.workers or train.global_batch_size; then run again, which continues."
                )
            self._unfinished[done] -= 1
        bad = self._rows["bad"][slot * self._size : (slot + 1) * self._size]
        return [group[slot] for group in self._crops], np.flatnonzero(bad)

    def close(self) -> None:
        """End the processes."""
        self._rows["size"] = 0  # makes the remaining samples no work
        os.close(self._tasks)
        os.close(self._done)


def _fate(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _unnamed_file() -> int:
    """An open file without a name: in memory on Linux, not bound by the size of /dev/shm. A kill leaves nothing of it."""
    if sys.platform == "linux":
        return os.memfd_create("crops")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_running: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def server() -> socket.socket:
    """The socket of the server that forks workers. Starts the server if there is none, which takes seconds, without waiting."""
    global _running
    if _running is None or _running[0].poll() is not None:
        socket_here, socket_there = socket.socketpair()
        with socket_there:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainers.data.crop_workers"],
                stdin=socket_there.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        _running = process, socket_here
        atexit.register(process.wait)
        atexit.register(process.kill)
    return _running[1]


def _serve(control: socket.socket) -> None:
    """Fork workers for every request, until the other end of the socket is closed."""
    torch.set_num_threads(1)
    for number in _IGNORED_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        request, descriptors, _, _ = socket.recv_fds(control, _PAIR.size, 3)
        if not request:
            return
        if not os.fork():
            control.close()
            _watch(*_PAIR.unpack(request), *descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(num_bytes: int, processes: int, memory: int, tasks: int, done: int) -> None:
    """Fork the workers, and report on the pipe `done` if one dies."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for _ in range(processes):
        if not os.fork():
            _exit_on_error(partial(_work, num_bytes, memory, tasks, done))
            os._exit(0)
    os.close(tasks)
    for _ in range(processes):
        _, status = os.wait()
        if code := os.waitstatus_to_exitcode(status):
            with suppress(BrokenPipeError):
                os.write(done, _PAIR.pack(-1, code))


def _work(num_bytes: int, memory: int, tasks: int, done: int) -> None:
    """Cut the rows named on the pipe `tasks` until it is closed."""
    buffers = SharedBuffers(**json.loads(os.pread(memory, os.fstat(memory).st_size - num_bytes, num_bytes)))
    rows, crops = buffers.arrays(mmap.mmap(memory, 0))
    samples = SampleList(
        shards=tuple(buffers.shards),
        shard=rows["shard"],
        offset=rows["offset"],
        size=rows["size"],
        crc32=rows["crc32"],
        row_id=np.arange(len(rows)),
    )
    # The training process tries again: here every sample of a batch would wait for a store that cannot be reached.
    reader, draws = ShardReader(samples, tries=1), Draws(rows["numbers"], rows["sides"])
    for piece in _fetched(tasks, reader) if any(map(is_url, buffers.shards)) else _pieces(tasks):
        slot = piece[0] // buffers.batch_size
        for chunk in (piece[first : first + _READ_TOGETHER] for first in range(0, len(piece), _READ_TOGETHER)):
            into = {row: [crop for group in crops for crop in group[slot, :, row % buffers.batch_size]] for row in chunk}
            good = _cut(chunk, reader, draws, into)
            rows["bad"][chunk.start : chunk.stop] = [row not in good for row in chunk]
        with suppress(BrokenPipeError):
            os.write(done, _PAIR.pack(slot, 0))


def _cut(rows: range, reader: ShardReader, draws: Draws, into: dict[int, list[np.ndarray]]) -> set[int]:
    """Cut the samples of `rows` into the crops `into`; returns the rows whose samples are good."""
    contents = {}
    for row in rows:
        with suppress(DataError):
            contents[row] = reader.read(row)
    return contents.keys() - cut(contents, draws, into)


def _pieces(tasks: int) -> Iterator[range]:
    """The pieces, ranges of rows, that are named on the pipe `tasks`, until it is closed."""
    while task := os.read(tasks, _PAIR.size):
        yield range(*_PAIR.unpack(task))


def _fetched(tasks: int, reader: ShardReader) -> Iterator[range]:
    """The same pieces, each once its bytes have arrived from a store: several are fetched while one is cut."""
    ready: Queue[range | None] = Queue(1)

    def fetch() -> None:
        for piece in _pieces(tasks):
            reader.ahead(piece)
            ready.put(piece)
        ready.put(None)

    for _ in range(_FETCHED):
        threading.Thread(target=_exit_on_error, args=[fetch], daemon=True).start()
    yield from iter(ready.get, None)


def _exit_on_error(work: Callable[[], None]) -> None:
    """Call `work`; if it fails, end the process, which the training is then told."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    with socket.socket(fileno=os.dup(0)) as listening:
        _serve(listening)
