"""What several test modules need."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

WINDROW = str(Path(sys.executable).parent / "windrow")
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"

TINY = {
    "rounds": 2,
    "shard.samples_per_shard": 16,
    "embed.encoder.image_size": 8,
    "embed.encoder.dim": 12,
    "cluster.levels": [12, 4],
    "cluster.resampling_steps": 2,
    "select": {"strategy": "balanced", "fraction": 0.5},
    "train.method": {"type": "dino", "prototypes": 16, "hidden_dim": 16, "bottleneck_dim": 8},
    "train.encoder": {"type": "vit", "image_size": 16, "patch_size": 8, "dim": 16, "depth": 1, "heads": 2, "pool": "mean"},
    "train.views": {"num_local": 1, "global_size": 16, "local_size": 8},
    "train.epochs": 6,
    "train.global_batch_size": 8,
    "train.ranks": 2,
    "train.warmup_epochs": 1,
    "train.checkpoint_every": 3,
    "train.log_every": 1,
    "train.evaluate_every": 2,
    "evaluate.neighbours": [3],
}
"""Overrides that make a run on `write_images` last seconds."""


def words(settings: dict[str, object]) -> list[str]:
    """Settings as the command line takes them."""
    return [f"{key}={value}".replace("'", "") for key, value in settings.items()]


def write_images(root: Path, num: int = 48, *, classes: int = 3, side: int = 20, seed: int = 0) -> Path:
    """A folder tree of PNG and JPEG images with classes that can be told apart: train/<class> and test/<class>."""
    draws = np.random.default_rng(seed)
    for index in range(num):
        label = index % classes
        folder = root / ("test" if index % 4 == 3 else "train") / f"class {label}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 90, (side, side + 4, 3))
        pixels[:, :, label % 3] += 120
        suffix = "jpg" if index % 2 else "png"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:04d}.{suffix}")
    return root


def windrow(*args: str, timeout: float = 1200, **options: object) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    command = [WINDROW, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)  # type: ignore[call-overload]


def artifacts(run_dir: Path) -> list[Path]:
    """Files of artifacts; not the logs, which tell of times."""
    apart = {".lock", "events.jsonl", "provenance.json", "report.html", "config.yaml"}
    return sorted(path for path in run_dir.rglob("*") if path.is_file() and path.name not in apart)


def contents(run_dir: Path) -> dict[str, bytes]:
    """The bytes of all files of artifacts, by name."""
    return {str(path.relative_to(run_dir)): path.read_bytes() for path in artifacts(run_dir)}


class Killable:
    """A command in a process group of its own, to be killed as a whole."""

    def __init__(self, command: list[str], log: Path) -> None:
        self._log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)

    def wait_for(self, text: str, timeout: float = 600) -> bool:
        """Wait until the output contains `text`; False if the process ended or the time passed without it."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline and text not in self._log.read_text():
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        return text in self._log.read_text()

    def kill(self) -> None:
        """Kill the whole group, at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


# A process of its own has imported what ranks need, which takes seconds, and forks each of them.
multiprocessing.set_forkserver_preload(["trainers.engine.train"])


def on_ranks(function: Callable[..., object], world_size: int, *args: object) -> None:
    """Call `function(rank, *args)` on the ranks of a gloo process group; an error on any rank is raised here."""
    with tempfile.TemporaryDirectory() as directory:
        rendezvous = f"file://{directory}/rendezvous"
        mp.start_processes(_rank, (world_size, rendezvous, function, args), nprocs=world_size, start_method="forkserver")


def _rank(rank: int, world_size: int, address: str, function: Callable[..., object], args: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world_size)
    function(rank, *args)
    dist.barrier()
    dist.destroy_process_group()
