"""The command line as a user meets it: mistakes end in a sentence and code 2."""

import shutil
import subprocess
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.helpers import WINDROW, windrow, write_images

STAGES = ("shard", "embed", "cluster", "dedup", "label", "select", "train", "evaluate")


def recipe(directory: Path, source: object) -> str:
    path = directory / "recipe.yaml"
    path.write_text(f"source: {{type: images, path: '{source}'}}\nselect: {{strategy: balanced, fraction: 0.5}}\n")
    return str(path)


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("train.epohcs=3", ["train.epohcs: there is no such setting", "Did you mean epochs?"]),
        ("rounds=two", ["rounds: found 'two'"]),
        ("train.method.type=doni", ["train.method.type: found 'doni'", "'dino', 'ibot'"]),
        ("source.path=/no/such/place", ["/no/such/place does not exist", "Correct the path"]),
        ("train.encoder={type: timm, model: resnet5000}", ["does not exist"]),
    ],
)
def test_mistakes_in_settings(tmp_path: Path, setting: str, parts: list[str]) -> None:
    done = windrow("run", recipe(tmp_path, "/no/such/folder"), f"run_dir={tmp_path}/run", setting, "--inline")
    assert done.returncode == 2
    assert all(part in done.stderr for part in parts)
    assert "Traceback" not in done.stderr


def test_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = windrow("run", recipe(tmp_path, tmp_path / "empty"), f"run_dir={tmp_path}/run", "--inline")
    assert done.returncode == 2
    assert "There are no images in" in done.stderr
    assert ".jpg" in done.stderr


def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    write_images(tmp_path / "source", 4)
    closed = tmp_path / "source" / "train" / "class 0"
    closed.chmod(0)
    # Root may read everything; without these capabilities it is a user like any other.
    command = [
        "setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all",
        WINDROW, "run", recipe(tmp_path, tmp_path / "source"), f"run_dir={tmp_path}/run", "--inline",
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    finally:
        closed.chmod(0o755)
    assert done.returncode == 2
    assert f"{closed} may not be read by this user" in done.stderr


def test_a_run_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = windrow("run", "quickstart", f"run_dir={tmp_path}/file/run")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_truncated_tars_and_empty_files_are_set_aside(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 40)
    (tmp_path / "images" / "train" / "class 1" / "nothing.jpg").touch()
    source = tmp_path / "source"
    source.mkdir()
    for name, mode in (("plain.tar", "w"), ("zipped.tar.gz", "w:gz")):
        with tarfile.open(source / name, mode) as tar:  # type: ignore[call-overload]
            tar.add(tmp_path / "images", name.split(".")[0])
    whole = (source / "plain.tar").read_bytes()
    (source / "plain.tar").write_bytes(whole[: len(whole) // 2])
    done = windrow("shard", str(source), f"{tmp_path}/out", "max_rejected_fraction=0.5", "--inline")
    assert done.returncode == 0, done.stderr
    reasons = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    found = {row["source"]: row["reason"] for row in reasons}
    assert any(reason == "empty file" for reason in found.values())
    assert {"truncated tar", "damaged tar"} & set(found.values())
    kept = pq.read_table(tmp_path / "out" / "index").num_rows
    assert kept == 40  # every image once: from the whole tar, or from what is left of the other
    assert list(found.values()).count("duplicate") >= 15


def test_a_heap_of_rubbish_stops_with_examples(tmp_path: Path) -> None:
    write_images(tmp_path / "source", 8)
    for number in range(8):
        (tmp_path / "source" / "train" / f"{number}.jpg").write_bytes(b"\xff\xd8 no image")
    done = windrow("shard", str(tmp_path / "source"), f"{tmp_path}/out", "--inline")
    assert done.returncode == 2
    assert "8 of 16 images cannot be used" in done.stderr
    assert "corrupt JPEG" in done.stderr


def test_help_is_quick_and_names_every_verb() -> None:
    done = windrow("--help")
    assert done.returncode == 0
    for verb in ("run", "plan", "status", "report", "doctor", *STAGES):
        assert f"\n  {verb} " in done.stdout
        help_text = windrow(verb, "--help").stdout
        assert "KEY=VALUE" in help_text or verb in ("status", "report", "doctor")
        assert ("--inline" in help_text) == (verb in ("run", *STAGES))


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("launch.cli.main", ["torch", "ray", "numpy", "pyarrow", "pydantic"]),
        (
            "launch.config.load, launch.provenance, pipeline.rounds.graph, launch.plan, launch.report.page",
            ["torch", "ray", "sklearn", "timm"],
        ),
    ],
    ids=["help", "looking at a run"],
)
def test_nothing_heavy_is_imported_for(modules: str, heavy: list[str]) -> None:
    code = f"import sys, {modules}; print([m for m in {heavy} if m in sys.modules])"
    python = shutil.which("python", path=str(Path(WINDROW).parent))
    assert python is not None
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_run_no_status(tmp_path: Path) -> None:
    for verb in ("status", "report"):
        done = windrow(verb, str(tmp_path))
        assert done.returncode == 2
        assert "is no run" in done.stderr
