"""The user's own Ray cluster, and what happens when something fails on it."""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from curation.errors import DataError
from pipeline.artifacts import Manifest
from pipeline.runtime import Runtime
from tests.helpers import WINDROW, windrow, write_images

pytestmark = pytest.mark.xdist_group("run")

# Recent Ray wants a token from everyone who connects; between two processes of a test it only gets in the way.
OPEN = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def ray_cluster(tmp_path: Path) -> Iterator[str]:
    """A Ray head of its own, as `ray start` makes one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(WINDROW).parent / "ray"), "start", "--head", "--block", "--include-dashboard=false", "--num-cpus=2"]
    command += [
        f"--port={port}",
        "--object-store-memory=100000000",
    ]
    log = (tmp_path / "ray.log").open("w+")
    head = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=OPEN)
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in (tmp_path / "ray.log").read_text():
            assert time.monotonic() < deadline, (tmp_path / "ray.log").read_text()
            assert head.poll() is None, (tmp_path / "ray.log").read_text()
            time.sleep(0.2)
        yield f"127.0.0.1:{port}"
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def test_a_stage_runs_on_the_users_cluster(ray_cluster: str, tmp_path: Path) -> None:
    source = write_images(tmp_path / "source", 24)
    there = windrow("shard", str(source), f"{tmp_path}/there", env={**OPEN, "RAY_ADDRESS": ray_cluster})
    assert there.returncode == 0, there.stderr
    here = windrow("shard", str(source), f"{tmp_path}/here")
    assert here.returncode == 0, here.stderr
    assert Manifest.read(tmp_path / "there") == Manifest.read(tmp_path / "here")


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
