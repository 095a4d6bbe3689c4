import re
from pathlib import Path

import pytest

from launch.report.page import write
from pipeline.rounds.record import RunRecord
from tests.launch.report.runs import STAGES, copy_of, words, write_config

pytestmark = pytest.mark.xdist_group("report")  # one pair of runs for all of them


def test_page_is_self_contained(labelled: Path, labelled_page: str) -> None:
    assert write(labelled) == labelled / "report.html"
    assert not re.search(r"https?://|//[a-z]+\.|@import", labelled_page)
    assert not re.findall(r"\b(?:src|srcset|poster)\s*=", labelled_page)
    assert all(href.startswith("#") for href in re.findall(r"\bhref\s*=\s*\"([^\"]*)", labelled_page))
    assert re.findall(r"url\((.{11})", labelled_page) == ["data:image/"]
    assert "default-src 'none'" in labelled_page


def test_navigation_leads_to_every_section(labelled_page: str) -> None:
    anchors = re.findall(r'href="#(\w+)"', labelled_page)
    assert anchors == re.findall(r'<section id="(\w+)"', labelled_page)
    assert anchors == ["in", "balance", "clusters", "map", "curves", "made"]


def test_same_run_same_page(labelled: Path, labelled_page: str) -> None:
    assert write(labelled).read_text() == labelled_page


def test_says_what_is_missing(labelled_page: str) -> None:
    text = words(labelled_page)
    assert "Not finished yet: baseline/evaluate, round-0/train, round-0/evaluate" in text
    assert "Not there yet: nothing has been trained or evaluated" in text


def test_a_run_with_nothing_but_its_settings(tmp_path: Path) -> None:
    write_config(tmp_path, {"type": "images", "path": tmp_path / "images"})
    text = words(write(tmp_path).read_text())
    assert "Nothing is finished yet" in text
    assert "round-0/train" in text
    assert "samples_per_shard: 16" in text


def test_a_run_whose_settings_cannot_be_read(labelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(labelled, tmp_path)
    (run_dir / "config.yaml").write_text("rounds: many\nsource: {")
    text = words(write(run_dir).read_text())
    assert "config.yaml cannot be read by this version" in text
    assert "5 of 5 stages finished" in text
    assert "47 files found" in text
    assert "10 selected in round 0" in text
    assert "rounds: many" in text


@pytest.mark.parametrize("name", STAGES)
def test_goes_on_with_damaged_parts(labelled: Path, tmp_path: Path, name: str) -> None:
    run_dir = copy_of(labelled, tmp_path)
    (step,) = (step for step in RunRecord.read(run_dir).steps if step.name == name)
    assert step.manifest is not None
    for part in step.manifest.parts:
        (run_dir / name / part.path).write_bytes(b"cut short")
    text = words(write(run_dir).read_text())
    assert ("Some of the run could not be read" in text) == (name != "round-0/label")  # of labels only the count is shown
    assert "47 files found" in text
    assert text.count("TV 0.") == (0 if name in ("round-0/cluster", "round-0/select") else 2)


@pytest.mark.parametrize("name", STAGES)
def test_goes_on_with_a_damaged_manifest(labelled: Path, tmp_path: Path, name: str) -> None:
    run_dir = copy_of(labelled, tmp_path)
    (run_dir / name / "manifest.json").write_text('{"kind": ')
    text = words(write(run_dir).read_text())
    assert f"{name}/manifest.json is not a manifest of this program" in text
    assert "4 of 8 stages finished" in text


def test_goes_on_without_a_damaged_file(unlabelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(unlabelled, tmp_path)
    (run_dir / "samples/rejects.parquet").write_bytes(b"cut short")
    (run_dir / "round-0/cluster/level-1/assignment.npy").unlink()
    (run_dir / "events.jsonl").write_text('{"stage": "sam{"stage": "round-0/embed", "seconds": 1}\n')
    (run_dir / "provenance.json").write_text('{"command": ')
    text = words(write(run_dir).read_text())
    assert "Some of the run could not be read" in text
    assert "rejects.parquet is damaged" in text
    assert "assignment.npy cannot be read" in text
    assert "events.jsonl is damaged: line 1 is not JSON" in text
    assert "47 files found" in text
