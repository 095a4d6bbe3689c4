"""What tests share: Ray, and one finished run for those that look at what a run leaves behind (an xdist group)."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from pipeline.runtime.console import Console
from pipeline.runtime.inline import InlineExecutor
from pipeline.runtime.ray_executor import RayExecutor
from tests.helpers import TINY, words, write_images

# Nothing is timed: machines are shared.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Peers draw from global generators; what a test compares with must be the same in every run."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.fixture(scope="session")
def ray() -> Iterator[RayExecutor]:
    """Ray, for what is about Ray: one for each process of pytest, as a process can have no second."""
    with RayExecutor(Console(quiet=True)) as executor:
        yield executor


@pytest.fixture(scope="session")
def executor() -> InlineExecutor:
    """This process, for the stages that a test calls itself."""
    return InlineExecutor(Console(quiet=True))


@dataclass(frozen=True)
class FinishedRun:
    directory: Path
    config: Path
    output: str
    loaded_torch: bool
    """Whether the process that scheduled the run has loaded torch."""


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 good images, and of bad ones an empty, a cut, a tiny one, a copy, and a copy of a held-out one."""
    root = write_images(tmp_path_factory.mktemp("source"))
    good = root / "train" / "class 0" / "0000.png"
    (root / "train" / "empty.jpg").touch()
    (root / "train" / "cut.png").write_bytes(good.read_bytes()[:400])
    (root / "train" / "class 0" / "0000 copy.png").write_bytes(good.read_bytes())
    (root / "train" / "leak.jpg").write_bytes((root / "test" / "class 0" / "0003.jpg").read_bytes())
    write_images(root / "thumbnails", 1, side=6)
    return root


@pytest.fixture(scope="session")
def tiny_run(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    directory = tmp_path_factory.mktemp("runs")
    config = directory / "tiny.yaml"
    config.write_text(f"source: {{type: images, path: {tiny_images}}}\nselect: {{strategy: balanced, fraction: 0.5}}\n")
    # What `windrow run` does, and then says whether its process, which only schedules, has loaded what computes.
    program = "import sys; from launch.cli.main import app; app(standalone_mode=False); print('torch' in sys.modules)"
    command = [sys.executable, "-c", program, "run", str(config), f"run_dir={directory}/run", *words(TINY)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return FinishedRun(directory / "run", config, done.stderr, loaded_torch=done.stdout.strip() == "True")
