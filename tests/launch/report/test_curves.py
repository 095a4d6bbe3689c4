import json
from pathlib import Path

import pytest

from launch.report.page import write
from tests.launch.report.runs import copy_of, words

pytestmark = pytest.mark.xdist_group("report")


def test_training_under_way_shows_its_loss(unlabelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(unlabelled, tmp_path)
    (run_dir / "round-0/train").mkdir()
    lines = [json.dumps({"step": step, "loss": 5 / step}) for step in range(1, 9)]
    (run_dir / "round-0/train/metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "lo')
    text = words(write(run_dir).read_text())
    assert "Training loss" in text
    assert "while training" not in text
    for name, score in (("kNN", {"knn": 0.5}), ("RankMe", {"rankme": 7.0})):
        lines = [json.dumps({"step": step, "rankme": 1.0, **score}) for step in (0, 4, 8)]
        (run_dir / "round-0/train/evaluations.jsonl").write_text("\n".join(lines) + "\n")
        page = write(run_dir).read_text()
        assert f"{name} while training" in page
        assert ">50%<" in page or name != "kNN"


def test_a_damaged_line_leaves_a_note(unlabelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(unlabelled, tmp_path)
    (run_dir / "round-0/train").mkdir()
    (run_dir / "round-0/train/metrics.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo{"step": 3, "loss": 1}\n')
    text = words(write(run_dir).read_text())
    assert "metrics.jsonl is damaged: line 2 is not JSON" in text
    assert "Training loss" not in text
