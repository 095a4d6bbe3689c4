import subprocess
import sys
from pathlib import Path

import pytest

from launch.status import show_status
from pipeline.artifacts.manifest import MANIFEST
from pipeline.rounds.config import RunConfig
from pipeline.runtime.inline import InlineExecutor
from tests.helpers import write_images
from tests.launch.report.runs import run, write_config


@pytest.fixture
def begun(tmp_path: Path, executor: InlineExecutor) -> RunConfig:
    """A run whose samples and embeddings are made, in a directory with a quote in its name."""
    source = write_images(tmp_path / "images", 24)
    config = write_config(tmp_path / "a user's run", {"type": "images", "path": source})
    run(config, executor, ["samples", "round-0/embed"])
    return config


def states(output: str) -> dict[str, str]:
    """The lines of a status by step, with single spaces, without the step."""
    split = [line.split(maxsplit=1) for line in output.splitlines() if line.startswith("  ")]
    return {words[0]: " ".join(words[1].split()) for words in split if len(words) == 2}


def test_finished_steps_tell_what_they_made(begun: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    show_status(begun)
    shown = states(capsys.readouterr().out)
    assert len(shown) == 1 + 8  # headings and steps
    assert shown["samples"].startswith("finished")
    assert shown["samples"].endswith("pool 18, held out 6, set aside 0")
    assert shown["round-0/embed"].endswith("18 \u00d7 8 features")
    assert shown["round-0/cluster"] == "to do"


def test_begun_steps_tell_how_far_they_are(begun: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    embed = begun.run_dir / "round-0" / "embed"
    (embed / MANIFEST).unlink()
    show_status(begun)
    assert states(capsys.readouterr().out)["round-0/embed"] == "begun"
    (embed / "work").mkdir(exist_ok=True)
    (embed / "work" / "embed-000000.json").write_text("[]")
    show_status(begun)
    assert states(capsys.readouterr().out)["round-0/embed"] == "begun, 1 parts"


def test_steps_made_for_other_settings_are_told(begun: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    show_status(begun.model_copy(update={"seed": 1}))
    shown = states(capsys.readouterr().out)
    assert shown["samples"].startswith("finished")
    assert shown["round-0/embed"].startswith("made differently")


def test_the_command_needs_neither_torch_nor_ray(begun: RunConfig) -> None:
    program = (
        "import sys; from launch.cli.main import app; app(sys.argv[1:], standalone_mode=False); "
        "print('heavy:', sorted({'torch', 'ray', 'timm', 'scipy', 'sklearn'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program, "status", str(begun.run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert states(done.stdout)["samples"].startswith("finished")
    assert done.stdout.splitlines()[-1] == "heavy: []"
