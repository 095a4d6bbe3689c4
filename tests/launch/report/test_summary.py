import shutil
from pathlib import Path

import pytest

from launch.report.page import write
from pipeline.artifacts.manifest import Manifest
from tests.launch.report.runs import copy_of, words, write_config

pytestmark = pytest.mark.xdist_group("report")


def with_scores(run_dir: Path, name: str, **scores: float) -> None:
    """Pretend that an encoder was evaluated."""
    (run_dir / name).mkdir(parents=True, exist_ok=True)
    manifest = Manifest.read(run_dir / "round-0/label")
    values = {"kind": "evaluation", "layout": 1, "parts": (), "statistics": {"dim": 8, "queries": 100, **scores}}
    manifest.model_copy(update=values).write(run_dir / name)


def test_lead_and_tiles_compare_the_newest_encoder_with_the_baseline(labelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(labelled, tmp_path)
    assert "The last selection keeps 25% of the pool and covers its level-1 clusters" in words(write(run_dir).read_text())
    with_scores(run_dir, "baseline/evaluate", rankme=2.0)
    assert "RankMe 2.0 of 8 dimensions; effective rank" in words(write(run_dir).read_text())
    with_scores(run_dir, "round-0/evaluate", rankme=4.5)
    text = words(write(run_dir).read_text())
    assert "After round 0 the features have an effective rank (RankMe) of 4.5, from 2.0 for raw pixels." in text
    with_scores(run_dir, "baseline/evaluate", rankme=2.0, knn=0.5, linear=0.4)
    with_scores(run_dir, "round-0/evaluate", rankme=4.5, knn=0.75, linear=0.41)
    text = words(write(run_dir).read_text())
    assert "classify 75.0% of 100 labelled test images correctly, 25.0 points above raw pixels (50.0%)." in text
    assert "kNN accuracy 75.0% ▲ better · +25.0 points from the baseline's 50.0%" in text
    assert "Linear probe 41.0% +1.0 points from the baseline's 40.0%, within chance" in text
    assert "Accuracy on test images" in text  # the curves by round


def test_before_the_first_selection_the_pool_is_counted(labelled: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "run", {"type": "images", "path": labelled.parent / "images"})
    shutil.copytree(labelled / "samples", config.run_dir / "samples")
    text = words(write(config.run_dir).read_text())
    assert "40 samples are in the pool." in text
    assert "In the pool 40 of 47 files" in text
    assert "Not there yet: no round has finished its selection" in text
