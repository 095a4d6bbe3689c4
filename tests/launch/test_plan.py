import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launch.config.recipes import recipes
from launch.plan import estimate, show
from pipeline.rounds import graph
from pipeline.rounds.config import RunConfig
from pipeline.rounds.record import RunRecord
from pipeline.rounds.run import EVENTS
from pipeline.runtime.inline import InlineExecutor
from tests.helpers import write_images
from tests.launch.report.runs import run, write_config

HEAVY = ["torch", "ray", "timm", "scipy", "sklearn"]
PROGRAM = f"""
import sys
from launch.cli.main import app
from launch.config.recipes import recipes

for words in [line.split("|") for line in sys.stdin.read().splitlines()]:
    app(["plan", *words], standalone_mode=False)
    heavy = [name for name in {HEAVY} if name in sys.modules]
    if heavy:
        sys.exit(f"the plan of {{words}} has imported {{heavy}}")
"""


@pytest.fixture
def planned(tmp_path: Path, executor: InlineExecutor) -> RunConfig:
    """A run of two rounds whose samples are made."""
    source = write_images(tmp_path / "images", 24)
    config = write_config(tmp_path / "run", {"type": "images", "path": source}, rounds=2)
    run(config, executor, ["samples"])
    return config


def lines(output: str) -> dict[str, str]:
    """The lines of a plan by step."""
    return {line.split()[0]: line for line in output.splitlines() if line.startswith("  ") and line.split()}


def test_every_recipe_is_planned_without_torch_or_ray(tmp_path: Path) -> None:
    source = f"source.path={write_images(tmp_path / 'images', 8)}"
    place = f"run_dir={tmp_path}/run"
    calls = [[name, place] if name == "quickstart" else [name, place, source] for name in recipes()]
    calls.append(["quickstart", place, "rounds=12", "dedup={}"])
    assert len(calls) > 20
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input="\n".join("|".join(words) for words in calls), capture_output=True, text=True,
        timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Plan of") == len(calls)
    assert not (tmp_path / "run").exists()


def test_a_plan_takes_one_fingerprint_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    original = graph.fingerprint

    def counting(kind: str, *args: Any) -> str:
        calls.append(kind)
        return original(kind, *args)

    monkeypatch.setattr(graph, "fingerprint", counting)
    source = {"type": "digits"}
    config = write_config(tmp_path / "run", source, rounds=12, dedup={})
    show(config)
    assert len(graph.steps(config)) == 2 + 12 * 7
    assert len(calls) <= 2 + 12 * 7


def test_finished_steps_have_counted_themselves(planned: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    record = RunRecord.read(planned.run_dir, planned)
    samples = record.steps[0].manifest
    assert samples is not None
    estimates = estimate(record, {step.name: step.state for step in record.steps})
    assert estimates["samples"].rows == samples.statistics["pool"] == 18
    assert estimates["round-0/embed"].rows == 18
    assert estimates["round-1/embed"].dim == planned.train.encoder.dim  # type: ignore[union-attr]
    show(planned)
    output = capsys.readouterr().out
    assert "finished" in lines(output)["samples"]
    assert "~" not in lines(output)["samples"]
    assert sum("to do" in line for line in output.splitlines()) == 13
    assert "Pool of 18 samples and 6 held out; 2 rounds." in output


def test_a_stage_takes_as_long_as_in_an_earlier_round(
    planned: RunConfig, executor: InlineExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    run(planned, executor, [f"round-0/{stage}" for stage in ("embed", "cluster", "label")])
    with (planned.run_dir / EVENTS).open("a") as file:
        print(json.dumps({"stage": "round-0/label", "seconds": 7200.0}), file=file)
    show(planned)
    shown = lines(capsys.readouterr().out)
    assert "~2 h 00 min" in shown["round-1/label"]
    assert "~2 h 00 min" not in shown["round-1/select"]
    show(planned.model_copy(update={"seed": 1}))  # other clusters, whose labels are not finished
    shown = lines(capsys.readouterr().out)
    assert "made differently" in shown["round-0/label"]
    assert "~2 h 00 min" not in shown["round-1/label"]
