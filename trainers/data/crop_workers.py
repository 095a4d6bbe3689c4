"""Decoding and cutting in processes of their own: threads would hold the interpreter, which whoever trains needs as well.

What is to be read, how it is shown and what comes of it lie in memory that the processes share; through pipes go only numbers
of rows. A server, started when it is first needed, has everything imported and forks them; they end with whom they serve.
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
"""Of a batch, for each process: few enough to be worth a message, many enough that none waits long for another."""
_TOGETHER = 16
"""Samples of a piece that are read before the first of them is decoded."""
_FETCHED = 8
"""Pieces that a process has asked a store for at once."""
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""They reach all processes of a job, but a training first takes one more step, which needs its samples."""


@dataclass(frozen=True)
class Room:
    """The layout of the shared memory: a row for each of `batch_size` samples in each of `slots`, then their crops."""

    shards: Sequence[str]
    slots: int
    batch_size: int
    views: Sequence[tuple[int, int]]
    """Number and size of the global and of the local crops."""

    @cached_property
    def _row(self) -> np.dtype:
        """A sample: its place in the shards, how it is shown, and whether it cannot be."""
        numbers, sides = Draws.shapes(sum(count for count, _ in self.views))
        where = [("shard", "i4"), ("offset", "i8"), ("size", "i8"), ("crc32", "u4"), ("bad", "?")]
        return np.dtype([*where, ("numbers", "f8", numbers), ("sides", "f8", sides)], align=True)

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


class Cutters:
    """Processes that cut the crops of samples into shared memory, in any of its slots at once."""

    def __init__(self, room: Room, processes: int) -> None:
        self._size = room.batch_size
        self._pieces = min(_PIECES * processes, room.batch_size)
        self._left = [0] * room.slots
        described = json.dumps(asdict(room)).encode()
        memory = _unnamed_file()
        tasks, self._tasks = os.pipe()
        self._done, done = os.pipe()
        try:
            os.truncate(memory, room.num_bytes)
            os.pwrite(memory, described, room.num_bytes)
            socket.send_fds(server(), [_PAIR.pack(room.num_bytes, processes)], [memory, tasks, done])
            self._rows, self._crops = room.arrays(mmap.mmap(memory, 0))
        finally:
            for descriptor in (memory, tasks, done):
                os.close(descriptor)

    def begin(self, slot: int, samples: SampleList, indices: np.ndarray, draws: Draws) -> None:
        """Have the samples at `indices` (B,) cut into `slot`."""
        first, end = slot * self._size, (slot + 1) * self._size
        rows = self._rows[first:end]
        for name in ("shard", "offset", "size", "crc32"):
            rows[name] = getattr(samples, name)[indices]
        rows["numbers"], rows["sides"], rows["bad"] = draws.numbers, draws.sides, False
        self._left[slot] = self._pieces
        with suppress(BrokenPipeError):  # if nobody is there any more, `crops` says why
            for piece in pairwise(np.linspace(first, end, self._pieces + 1).astype(int).tolist()):
                os.write(self._tasks, _PAIR.pack(*piece))

    def crops(self, slot: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Wait for the crops in `slot`, global and local, (V, B, S, S, 3) uint8; and which places lack them, (M,) int64."""
        while self._left[slot]:
            record = os.read(self._done, _PAIR.size)
            done, code = _PAIR.unpack(record) if record else (-1, 1)
            if done < 0:
                raise DataError(
                    f"A process that decodes images {_fate(code)}. Anything it said stands above. If the machine ran out of "
                    "memory, lower train.workers or train.global_batch_size; then run again, which continues."
                )
            self._left[done] -= 1
        bad = self._rows["bad"][slot * self._size : (slot + 1) * self._size]
        return [group[slot] for group in self._crops], np.flatnonzero(bad)

    def close(self) -> None:
        """Let the processes end."""
        self._rows["size"] = 0  # what is still to be done is no work
        os.close(self._tasks)
        os.close(self._done)


def _fate(code: int) -> str:
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _unnamed_file() -> int:
    """A file in memory where the system has such, not bound by the size of /dev/shm; nothing is left of it after a kill."""
    if sys.platform == "linux":
        return os.memfd_create("crops")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_running: tuple[subprocess.Popen[bytes], socket.socket] | None = None


def server() -> socket.socket:
    """Where to ask for processes. Starts what listens there, which takes a few seconds, without waiting for it."""
    global _running
    if _running is None or _running[0].poll() is not None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "trainers.data.crop_workers"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                start_new_session=True,
            )
        _running = process, ours
        atexit.register(process.wait)
        atexit.register(process.kill)
    return _running[1]


def _serve(control: socket.socket) -> None:
    """Fork processes for everyone who asks, until nobody can ask any more."""
    torch.set_num_threads(1)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        asked, descriptors, _, _ = socket.recv_fds(control, _PAIR.size, 3)
        if not asked:
            return
        if not os.fork():
            control.close()
            _watch(*_PAIR.unpack(asked), *descriptors)
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(num_bytes: int, processes: int, memory: int, tasks: int, done: int) -> None:
    """Fork processes that cut, and tell of one that dies."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for _ in range(processes):
        if not os.fork():
            _or_die(partial(_cut_all, num_bytes, memory, tasks, done))
            os._exit(0)
    os.close(tasks)
    for _ in range(processes):
        _, status = os.wait()
        if code := os.waitstatus_to_exitcode(status):
            with suppress(BrokenPipeError):
                os.write(done, _PAIR.pack(-1, code))


def _cut_all(num_bytes: int, memory: int, tasks: int, done: int) -> None:
    """Cut the rows that `tasks` names until it is closed."""
    room = Room(**json.loads(os.pread(memory, os.fstat(memory).st_size - num_bytes, num_bytes)))
    rows, crops = room.arrays(mmap.mmap(memory, 0))
    samples = SampleList(
        shards=tuple(room.shards),
        shard=rows["shard"],
        offset=rows["offset"],
        size=rows["size"],
        crc32=rows["crc32"],
        row_id=np.arange(len(rows)),
    )
    # Whoever serves a training tries again: here every sample of a batch would wait for a store that is away.
    reader, draws = ShardReader(samples, tries=1), Draws(rows["numbers"], rows["sides"])
    for piece in _fetched(tasks, reader) if any(map(is_url, room.shards)) else _pieces(tasks):
        slot = piece[0] // room.batch_size
        for some in (piece[first : first + _TOGETHER] for first in range(0, len(piece), _TOGETHER)):
            into = {row: [crop for group in crops for crop in group[slot, :, row % room.batch_size]] for row in some}
            good = _cut(some, reader, draws, into)
            rows["bad"][some.start : some.stop] = [row not in good for row in some]
        with suppress(BrokenPipeError):
            os.write(done, _PAIR.pack(slot, 0))


def _cut(some: range, reader: ShardReader, draws: Draws, into: dict[int, list[np.ndarray]]) -> set[int]:
    """Cut the samples of these rows; which of them can be."""
    contents = {}
    for row in some:
        with suppress(DataError):
            contents[row] = reader.read(row)
    return contents.keys() - cut(contents, draws, into)


def _pieces(tasks: int) -> Iterator[range]:
    """The rows that `tasks` names, some at a time, until it is closed."""
    while task := os.read(tasks, _PAIR.size):
        yield range(*_PAIR.unpack(task))


def _fetched(tasks: int, reader: ShardReader) -> Iterator[range]:
    """The same, once what they want of a store is here: several are fetched while one is cut."""
    ready: Queue[range | None] = Queue(1)

    def fetch() -> None:
        for piece in _pieces(tasks):
            reader.ahead(piece)
            ready.put(piece)
        ready.put(None)

    for _ in range(_FETCHED):
        threading.Thread(target=_or_die, args=[fetch], daemon=True).start()
    yield from iter(ready.get, None)


def _or_die(work: Callable[[], None]) -> None:
    """End the process if this fails; who serves it is told."""
    try:
        work()
    except BaseException:
        traceback.print_exc()
        os._exit(1)


if __name__ == "__main__":
    with socket.socket(fileno=os.dup(0)) as listening:
        _serve(listening)
