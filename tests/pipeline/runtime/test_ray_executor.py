"""The user's own Ray cluster, and what happens when something fails on it."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.base.errors import DataError
from pipeline.artifacts.manifest import Manifest
from pipeline.runtime.ray_executor import Runtime
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
    program = (
        "from pipeline.runtime.console import Console; from pipeline.runtime.ray_executor import Runtime; "
        "from tests.pipeline.runtime.test_ray_executor import whereabouts; "
        "print(*Runtime(Console(quiet=True)).ranks(whereabouts, 4, gpu=False))"
    )
    asked = [sys.executable, "-c", program]
    said = subprocess.run(asked, env={**OPEN, "RAY_ADDRESS": ray_cluster}, capture_output=True, text=True, check=True).stdout
    assert said.split() == ["2", "True"]

    program = (
        "import sys; from pathlib import Path; from pipeline.runtime.console import Console; "
        "from pipeline.runtime.ray_executor import Runtime; from tests.pipeline.runtime.test_ray_executor import note; "
        " calls = [(Path(sys.argv[1]), number) for number in range(16)]; "
        "Runtime(Console(quiet=True)).map(note, calls, weights=[1] * 16, done=0, label='test', unit='calls', gpu=True)"
    )
    (tmp_path / "notes").mkdir()
    subprocess.run([sys.executable, "-c", program, tmp_path / "notes"], env={**OPEN, "RAY_ADDRESS": ray_cluster}, check=True)
    notes = [(tmp_path / "notes" / str(number)).read_text().split() for number in range(16)]
    assert {threads for _, threads in notes} == {"2"}  # the CPUs of a machine for its one GPU
    processes = [process for process, _ in notes]
    assert processes[2:6] == [processes[2]] * 2 + [processes[4]] * 2  # two calls for each process
    assert len(set(processes)) == 8


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


def test_one_failing_rank_ends_all_with_its_own_words_and_a_lost_worker_is_replaced(tmp_path: Path, runtime: Runtime) -> None:
    with pytest.raises(DataError, match="rank one has had enough"):
        list(runtime.ranks(_fail_on_rank_one, 2, gpu=False))
    runtime.map(_die_once, [(tmp_path / "x",)], weights=[1], done=0, label="test", unit="calls", gpu=False)
    assert (tmp_path / "x.done").exists()
