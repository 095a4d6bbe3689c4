"""Small runs to report on, and how to read the pages about them."""

import html
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pipeline.artifacts.manifest import Manifest, Part
from pipeline.rounds.config import RunConfig
from pipeline.rounds.graph import steps
from pipeline.rounds.run import run_steps
from pipeline.runtime.inline import InlineExecutor

STAGES = ("samples", "round-0/embed", "round-0/cluster", "round-0/label", "round-0/select")


def make_run(directory: Path, executor: InlineExecutor, folders: Sequence[str]) -> Path:
    """Run the stages up to the first selection on 40 good images, 3 copies, 2 small ones, 1 broken and 1 empty one."""
    source, run_dir = directory / "images", directory / "run"
    random = np.random.default_rng(0)
    for number in range(40):
        folder = source / folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        low = 128 * (number % 2)
        pixels = random.integers(low, low + 128, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
        if number in (4, 5, 6):
            shutil.copy(folder / f"{number:02d}.png", folder / f"{number:02d} copy.png")
        if number in (8, 9):
            Image.fromarray(pixels[:8, :8]).save(folder / f"{number:02d} small.png")
    (folder / "<b>x.png").write_bytes(b"no image")
    (folder / "empty.png").write_bytes(b"")
    run(write_config(run_dir, {"type": "images", "path": source}), executor, STAGES)
    return run_dir


def write_config(run_dir: Path, source: dict[str, Any], **settings: Any) -> RunConfig:
    """The configuration of a small run, as its directory keeps it."""
    config = RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "rounds": 1,
            "source": source,
            "shard": {"samples_per_shard": 16},
            "embed": {"encoder": {"type": "pixels", "image_size": 8, "dim": 8}},
            "cluster": {"levels": [12, 4], "resampling_steps": 1},
            "select": {"strategy": "balanced", "fraction": 0.25},
            **settings,
        }
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


def run(config: RunConfig, executor: InlineExecutor, names: Sequence[str]) -> None:
    """Run some of the steps of a run."""
    run_steps([step for step in steps(config) if step.name in names], config.run_dir, executor, redo=False)


def copy_of(run_dir: Path, directory: Path) -> Path:
    """A copy of a run, to be changed."""
    shutil.copytree(run_dir, directory / "run")
    return directory / "run"


def describe_again(directory: Path) -> None:
    """Make the manifest fit parts that were changed on purpose."""
    manifest = Manifest.read(directory)
    parts = tuple(Part.describe(directory, part.path, part.num_rows) for part in manifest.parts)
    manifest.model_copy(update={"parts": parts}).write(directory)


def words(page: str) -> str:
    """The text of a page, without tags and with single spaces."""
    body = re.sub(r"(?s)<script>.*?</script>", "", page.split("<body>")[1])
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())
