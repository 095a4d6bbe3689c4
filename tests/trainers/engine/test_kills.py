"""Training on two ranks, killed and stopped at random steps, and continued on one, two and four."""

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np

from tests.helpers import Killable
from tests.trainers.data.test_loader import shards
from tests.trainers.engine.train_until_killed import METHODS, STEPS
from trainers.output_files import CHECKPOINTS, METRICS, newest_checkpoint


def begin(directory: Path, out: Path, world_size: int) -> Killable:
    command = [sys.executable, "-m", "tests.trainers.engine.train_until_killed", str(directory), str(out), str(world_size)]
    return Killable(command, directory / f"log of {out.name}")


def finish(directory: Path, out: Path, world_size: int) -> None:
    running = begin(directory, out, world_size)
    assert running.process.wait(600) == 0, (directory / f"log of {out.name}").read_text()


def losses(out: Path) -> dict[str, list[float]]:
    """By method; each step has one line."""
    result = {}
    for name in METHODS:
        rows = [json.loads(line) for line in (out / name / METRICS).read_text().splitlines()]
        assert [row["step"] for row in rows] == list(range(1, len(rows) + 1)), (name, out.name)
        result[name] = [row["loss"] for row in rows]
    return result


def num_lines(out: Path) -> int:
    return sum(path.read_text().count("\n") for path in out.glob(f"*/{METRICS}"))


def test_killed_and_stopped_at_random_steps_it_ends_the_same_on_any_number_of_ranks(tmp_path: Path) -> None:
    shards(tmp_path, num=24)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    finish(tmp_path, whole, 2)
    known = losses(whole)
    assert {len(curve) for curve in known.values()} == {STEPS}

    seed = random.randrange(2**32)
    print(f"seed {seed}")
    draws = random.Random(seed)
    for stop in (signal.SIGKILL, signal.SIGTERM):
        (out / "pid").unlink(missing_ok=True)
        moment = num_lines(out) + draws.randint(0, 2 * STEPS + 4)
        running = begin(tmp_path, out, 2)
        while running.process.poll() is None and not ((out / "pid").exists() and num_lines(out) >= moment):
            time.sleep(0.01)
        assert running.process.poll() is None, (tmp_path / "log of killed").read_text()
        if stop == signal.SIGTERM:
            os.kill(int((out / "pid").read_text()), signal.SIGTERM)
            shown = num_lines(out)
            assert running.process.wait(600) == 0
            name = list(METHODS)[(num_lines(out) - 1) // STEPS]
            steps = num_lines(out) - STEPS * list(METHODS).index(name)
            assert num_lines(out) <= shown + 3 or steps <= 2  # the method before may have come to its end meanwhile
            newest = newest_checkpoint(out / name / CHECKPOINTS)
            assert newest is not None
            assert newest.name == f"step-{steps:08d}"  # nothing is lost
        else:
            running.kill()
    for world_size in (1, 4):
        shutil.copytree(out, tmp_path / f"on {world_size}")
        finish(tmp_path, tmp_path / f"on {world_size}", world_size)
        for name, curve in losses(tmp_path / f"on {world_size}").items():
            assert np.abs(np.subtract(curve, known[name])).max() < 1e-4, (name, world_size)
    finish(tmp_path, out, 2)
    assert losses(out) == known
    for name in METHODS:
        last = f"{name}/{CHECKPOINTS}/step-{STEPS:08d}"
        files = [f"{name}/encoder.safetensors", *(f"{last}/{path.name}" for path in (whole / last).iterdir())]
        for file in files:
            assert (whole / file).read_bytes() == (out / file).read_bytes(), file
