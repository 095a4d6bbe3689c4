import json
import sys
from pathlib import Path

import pytest

from curation.base.errors import ConfigError
from curation.base.files import write_atomic
from tests.helpers import TINY, windrow, words, write_images
from trainers.engine.tensorboard import EVENTS, TensorBoard
from trainers.output_files import EVALUATIONS, METRICS

accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def line(step: int, **values: object) -> str:
    return json.dumps({"step": step, **values}) + "\n"


def points(directory: Path, tag: str) -> list[tuple[int, float]]:
    """What TensorBoard shows."""
    (file,) = (directory / EVENTS).iterdir()
    shown = accumulators.EventAccumulator(str(directory / EVENTS), purge_orphaned_data=False)
    shown.Reload()
    assert "tfevents" in file.name
    return [(event.step, event.value) for event in shown.Scalars(tag)] if tag in shown.Tags()["scalars"] else []


def test_events_are_the_lines_also_after_lines_were_taken_back(tmp_path: Path) -> None:
    metrics = tmp_path / METRICS
    metrics.write_text("".join(line(step, loss=step / 2, verdict="fine") for step in (1, 2, 3)) + '{"step": 4, "lo')
    board = TensorBoard(tmp_path)
    board.update()
    assert points(tmp_path, "train/loss") == [(1, 0.5), (2, 1.0), (3, 1.5)]
    with metrics.open("a") as file:
        file.write('ss": 2.0}\n' + line(5, loss=None))
    (tmp_path / EVALUATIONS).write_text(line(4, epoch=1.0, knn=0.75))
    board.update()
    assert points(tmp_path, "train/loss") == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 2.0)]
    assert points(tmp_path, "evaluation/knn") == [(4, 0.75)]

    # Training goes back to step 2 while it runs, and after that the program starts again.
    write_atomic(metrics, "".join(line(step, loss=step / 2) for step in (1, 2)))
    write_atomic(tmp_path / EVALUATIONS, "")
    with metrics.open("a") as file:
        file.write(line(3, loss=9.0))
    for follower in (board, TensorBoard(tmp_path)):
        follower.update()
        assert points(tmp_path, "train/loss") == [(1, 0.5), (2, 1.0), (3, 9.0)]
        assert points(tmp_path, "evaluation/knn") == []


def test_a_missing_package_is_named_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.record_writer", None)
    with pytest.raises(ConfigError, match=r"windrow\[tensorboard\]"):
        TensorBoard(tmp_path)
    hidden = tmp_path / "hidden" / "tensorboard"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('not here')")
    (tmp_path / "config.yaml").write_text(f"source: {{type: images, path: {write_images(tmp_path / 'images', 4)}}}\n")
    environment = {"PYTHONPATH": f"{tmp_path / 'hidden'}:{':'.join(sys.path)}", "PATH": "/usr/bin:/bin"}
    settings = words({**TINY, "train.tensorboard": True})
    done = windrow("run", f"{tmp_path}/config.yaml", f"run_dir={tmp_path}/run", *settings, env=environment)
    assert done.returncode == 2
    assert "windrow[tensorboard]" in done.stderr
    assert not (tmp_path / "run" / "samples").exists()
