"""The user's own Ray cluster, and what happens when something fails on it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.base.errors import DataError
from pipeline.artifacts.manifest import Manifest
from pipeline.runtime.config import Resources
from pipeline.runtime.console import Console
from pipeline.runtime.ray_executor import RayExecutor
from tests.helpers import WINDROW, windrow, write_images
from trainers.ranks import ranks_per_node

# Recent Ray wants a token from everyone who connects; between two processes of a test it only gets in the way.
OPEN = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """A Ray of two machines (both this one), a head and another, as `ray start` makes them, and each with a GPU, it says."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    resources = ["--num-cpus=2", "--num-gpus=1", "--object-store-memory=100000000"]
    start = [str(Path(WINDROW).parent / "ray"), "start", "--block", *resources]
    machines: list[subprocess.Popen[bytes]] = []
    try:
        for number, role in enumerate(
            (["--head", "--include-dashboard=false", f"--port={port}"], [f"--address=127.0.0.1:{port}"])
        ):
            log = tmp_path / f"ray-{number}.log"
            with log.open("w") as out:
                machines.append(subprocess.Popen([*start, *role], stdout=out, stderr=out, start_new_session=True, env=OPEN))
            deadline = time.monotonic() + 90
            while "Ray runtime started" not in log.read_text():
                assert time.monotonic() < deadline, log.read_text()
                assert machines[-1].poll() is None, log.read_text()
                time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        for machine in reversed(machines):
            os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()


def test_a_stage_runs_on_the_users_cluster(ray_cluster: str, tmp_path: Path) -> None:
    source = write_images(tmp_path / "source", 24)
    there = windrow("shard", str(source), f"{tmp_path}/there", env={**OPEN, "RAY_ADDRESS": ray_cluster})
    assert there.returncode == 0, there.stderr
    here = windrow("shard", str(source), f"{tmp_path}/here")
    assert here.returncode == 0, here.stderr
    assert Manifest.read(tmp_path / "there") == Manifest.read(tmp_path / "here")
    assert run_here("print_whereabouts", ray_cluster).split() == ["2", "True"]

    (tmp_path / "notes").mkdir()
    run_here("write_notes", ray_cluster, str(tmp_path / "notes"))
    notes = [(tmp_path / "notes" / str(number)).read_text().split() for number in range(16)]
    assert {threads for _, threads in notes} == {"2"}  # the CPUs of a machine for its one GPU
    processes = [process for process, _ in notes]
    assert processes[2:6] == [processes[2]] * 2 + [processes[4]] * 2  # two calls for each process
    assert len(set(processes)) == 8


def run_here(function: str, address: str, *args: str) -> str:
    """Call a function of this module in a process that uses the cluster at `address`; what it prints."""
    program = f"import sys; from tests.pipeline.runtime.test_ray_executor import {function}; {function}(*sys.argv[1:])"
    environment = {**OPEN, "RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", program, *args], env=environment, capture_output=True, text=True, check=True)
    return done.stdout


def print_whereabouts() -> None:
    print(*RayExecutor(Console(quiet=True)).ranks(whereabouts, 4, resources=Resources(gpus=0), on_gpu=False))


def write_notes(folder: str) -> None:
    calls = [(Path(folder), number) for number in range(16)]
    ends = list(RayExecutor(Console(quiet=True)).map(note, calls, resources=Resources(), on_gpu=True))
    assert sorted(ends) == list(range(16))


def note(folder: Path, number: int) -> None:
    """Write down where this is called; at first be lost after that."""
    lost = number == 7 and not (folder / "lost").exists()
    (folder / ("lost" if lost else str(number))).write_text(f"{os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    if lost:
        os.kill(os.getpid(), signal.SIGKILL)


def whereabouts() -> Iterator[str]:
    """How many ranks are on this rank's machine, and whether the first two of four share one that the others do not."""
    import ray
    import torch
    import torch.distributed as dist

    node = int(ray.get_runtime_context().get_node_id()[:12], 16)
    nodes = [torch.zeros((), dtype=torch.int64) for _ in range(4)]
    dist.all_gather(nodes, torch.tensor(node))
    yield f"{ranks_per_node()} {nodes[0] == nodes[1] != nodes[2] == nodes[3]}"


def test_an_address_where_nobody_answers(tmp_path: Path) -> None:
    source = write_images(tmp_path / "source", 4)
    done = windrow("shard", str(source), f"{tmp_path}/out", env={**os.environ, "RAY_ADDRESS": "127.0.0.1:9"})
    assert done.returncode == 2, done.stderr
    assert "No Ray cluster answers at RAY_ADDRESS='127.0.0.1:9'" in done.stderr


def _fail_on_rank_one() -> Iterator[int]:
    import torch.distributed as dist

    yield 1
    if dist.get_rank() == 1:
        raise DataError("rank one has had enough")
    dist.barrier()
    yield 2


def _die_once(marker: Path) -> None:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    marker.with_suffix(".done").touch()


def test_one_failing_rank_ends_all_with_its_own_words_and_a_lost_worker_is_replaced(tmp_path: Path, ray: RayExecutor) -> None:
    with pytest.raises(DataError, match="rank one has had enough"):
        list(ray.ranks(_fail_on_rank_one, 2, resources=Resources(), on_gpu=False))
    assert list(ray.map(_die_once, [(tmp_path / "x",)], resources=Resources(), on_gpu=False)) == [0]
    assert (tmp_path / "x.done").exists()


def _nothing() -> None: ...


def _yield_rank() -> Iterator[int]:
    import torch.distributed as dist

    yield dist.get_rank()


def test_ranks_that_wait_for_one_another_hold_nothing(ray: RayExecutor) -> None:
    """Two runs that each held half of what both need would wait for ever."""
    ray_module = ray._ray()
    release = threading.Event()

    @ray_module.remote(num_cpus=1)
    class Holder:
        def hold(self) -> bool:
            return True

    holder = Holder.remote()
    assert ray_module.get(holder.hold.remote())
    num_ranks = ray.num_cpus()  # one core each: not all of them are free
    values: list[int] = []

    def train() -> None:
        values.extend(ray.ranks(_yield_rank, num_ranks, resources=Resources(), on_gpu=False))
        release.set()

    waiting = threading.Thread(target=train)
    waiting.start()
    try:
        for _ in range(3):
            time.sleep(1)
            others = ray_module.remote(num_cpus=num_ranks - 1)(_nothing)
            ray_module.get(others.remote(), timeout=30)
        assert not release.is_set()
    finally:
        ray_module.kill(holder)
        waiting.join(timeout=120)
    assert values == [0]


def test_a_task_without_gpus_sees_none(ray: RayExecutor, tmp_path: Path) -> None:
    list(ray.map(_write_visible, [(tmp_path / "visible",)], resources=Resources(), on_gpu=False))
    assert (tmp_path / "visible").read_text() == "''"


def _write_visible(path: Path) -> None:
    path.write_text(repr(os.environ.get("CUDA_VISIBLE_DEVICES")))
