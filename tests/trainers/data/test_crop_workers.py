import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from curation.base.errors import DataError
from tests.trainers.data.test_loader import VIEWS, shards
from trainers.data import crop_workers
from trainers.data.loader import Batch, Loader

FOREVER = 10**6


def batches(directory: Path, workers: int = 2) -> Iterator[Batch]:
    return Loader(shards(directory), VIEWS, seed=1, global_batch_size=4, workers=workers).batches(0, FOREVER)


def session(leader: int) -> dict[int, int]:
    """Processes that live in the session of `leader`, and the parent of each."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, _, of_session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of_session) == leader and state != "Z":
            found[int(path.parent.name)] = int(parent)
    return found


def server() -> int:
    assert crop_workers._running
    return crop_workers._running[0].pid


def becomes(leader: int, num: int) -> bool:
    """Whether a session has so many processes within ten seconds."""
    deadline = time.monotonic() + 10
    while len(found := session(leader)) != num:
        if time.monotonic() > deadline:
            pytest.fail(f"{num} processes expected, there are {found}")
        time.sleep(0.05)
    return True


def test_a_process_that_dies_is_told_and_the_next_start_works(tmp_path: Path) -> None:
    with closing(batches(tmp_path)) as shown:  # type: ignore[type-var]
        next(shown)
        assert becomes(server(), 1 + 1 + 2)
        family = session(server())
        for pid in family.keys() - set(family.values()) - {server()}:
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(DataError, match=r"ended by SIGKILL.*lower train.workers"):
            list(shown)
    assert becomes(server(), 1)
    assert crop_workers._running
    crop_workers._running[0].kill()
    crop_workers._running[0].wait()
    with closing(batches(tmp_path)) as shown:  # type: ignore[type-var]
        assert len(next(shown).row_id) == 4


def test_processes_end_when_their_batches_are_no_longer_wanted(tmp_path: Path) -> None:
    with closing(batches(tmp_path, workers=3)) as shown:  # type: ignore[type-var]
        next(shown)
        assert becomes(server(), 1 + 1 + 3)
    assert becomes(server(), 1)


def test_signals_that_end_a_training_leave_its_samples_coming(tmp_path: Path) -> None:
    with closing(batches(tmp_path)) as shown:  # type: ignore[type-var]
        next(shown)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
            os.killpg(server(), number)
        for _ in range(20):
            next(shown)


def test_nothing_is_left_of_a_training_that_is_killed(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from tests.trainers.data.test_crop_workers import batches, server; "
        f"shown = batches(Path({str(tmp_path)!r})); next(shown); print(server(), flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as training:
        assert training.stdout
        leader = int(training.stdout.readline())
        assert becomes(leader, 1 + 1 + 2)
        training.kill()
    assert becomes(leader, 0)
