import io
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.report.page import write
from launch.report.sections import intake
from pipeline.artifacts.duplicates import Duplicates
from pipeline.artifacts.manifest import Manifest
from pipeline.runtime.inline import InlineExecutor
from tests.launch.report.runs import run, words, write_config

pytestmark = pytest.mark.xdist_group("report")


def strip(page: str, reason: str) -> str:
    """The HTML of the examples of one reason."""
    start = page.index(f"<h3>{reason} · ")
    return page[start : page.index("</div>\n    </div>", start)]


def test_counts_files_by_reason(labelled: Path, labelled_page: str) -> None:
    text = words(labelled_page)
    counts = Manifest.read(labelled / "samples").statistics["rejected"]
    assert counts == {"duplicate": 3, "too small": 2, "corrupt image": 1, "empty file": 1}
    for reason, count in counts.items():
        assert f"{reason} · {count}" in text
        assert f"{count} set aside: {reason}" in text
    assert "47 files found" in text
    assert "40 in the pool" in text
    assert "listed in samples/rejects.parquet" in text


def test_file_names_are_escaped(labelled_page: str) -> None:
    assert "&lt;b&gt;x.png" in labelled_page
    assert "<b>x" not in labelled_page


def test_rejects_have_pictures_where_they_can_be_decoded(labelled_page: str, unlabelled_page: str) -> None:
    for page in (labelled_page, unlabelled_page):
        assert strip(page, "duplicate").count('class="pic"') == 3 * 2
        assert strip(page, "too small").count('class="pic"') == 2
        for reason in ("corrupt image", "empty file"):
            assert strip(page, reason).count('class="pic none"') == 1
            assert 'class="pic"' not in strip(page, reason)


def test_rejects_that_are_gone_or_large_have_no_picture(
    labelled: Path, labelled_page: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "_MAX_BYTES", 100)
    page = write(labelled).read_text()
    assert strip(page, "duplicate").count('class="pic none"') == 3 * 2
    monkeypatch.undo()
    images = labelled.parent / "images"
    images.rename(labelled.parent / "elsewhere")
    try:
        page = write(labelled).read_text()
    finally:
        (labelled.parent / "elsewhere").rename(images)
    assert strip(page, "too small").count('class="pic none"') == 2
    assert "could not be read" not in words(page)
    assert write(labelled).read_text() == labelled_page


def test_rejects_inside_tars_and_without_files_have_pictures(tmp_path: Path, executor: InlineExecutor) -> None:
    source = tmp_path / "images"
    source.mkdir()
    random = np.random.default_rng(0)
    with tarfile.open(source / "heap.tar", "w") as tar:
        for number, side in enumerate([20] * 8 + [6, 6]):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 255, (side, side, 3)).astype(np.uint8)).save(buffer, "PNG")
            for name in [f"{number}.png"] + ["copy.png"] * (number == 0):
                member = tarfile.TarInfo(name)
                member.size = len(buffer.getvalue())
                tar.addfile(member, io.BytesIO(buffer.getvalue()))
    run(write_config(tmp_path / "tar", {"type": "images", "path": source}), executor, ["samples"])
    page = write(tmp_path / "tar").read_text()
    assert strip(page, "duplicate").count('class="pic"') == 2
    assert strip(page, "too small").count('class="pic"') == 2
    run(write_config(tmp_path / "digits", {"type": "digits", "long_tail": 15}), executor, ["samples"])
    page = write(tmp_path / "digits").read_text()
    assert strip(page, "duplicate").count('class="pic"') == 7 * 2
    assert strip(page, "too small").count('class="pic"') > 0
    assert 'class="pic"' not in strip(page, "empty file")


def test_the_least_alike_near_duplicates_are_shown(tmp_path: Path, executor: InlineExecutor) -> None:
    source = tmp_path / "images"
    random = np.random.default_rng(0)
    for split, number in [("train", number) for number in range(20)] + [("test", number) for number in range(20, 24)]:
        (source / split).mkdir(parents=True, exist_ok=True)
        pixels = np.kron(random.integers(0, 200, (3, 3, 3)), np.ones((8, 8, 1))).astype(np.uint8)
        Image.fromarray(pixels).save(source / split / f"{number}.png")
        for change in range(1, 4 if number < 4 else 2):
            if number < 4 or split == "test":
                near = pixels + random.integers(0, 4 * change, pixels.shape).astype(np.uint8)
                Image.fromarray(near).save(source / "train" / f"{number} near {change}.png")
    dedup = {"similarity": 0.99, "hash_bits": 2}
    config = write_config(tmp_path / "run", {"type": "images", "path": source}, dedup=dedup)
    names = ["samples", "round-0/embed", "round-0/cluster", "round-0/dedup", "round-0/label", "round-0/select"]
    run(config, executor, names)
    duplicates = Duplicates.open(config.run_dir / "round-0/dedup")
    counts = duplicates.statistics["reasons"]
    assert counts["near held-out"] == 4
    assert counts["near-duplicate"] > 7
    page = write(config.run_dir).read_text()
    assert f"{sum(counts.values())} near-duplicates" in words(page)
    assert strip(page, "near held-out").count('class="pic"') == 4 * 2
    shown = [float(name) for name in re.findall(r"<figcaption[^>]*>(0\.\d+|1\.000)<", strip(page, "near-duplicate"))]
    assert len(shown) == 7
    assert shown == sorted(shown)
    pairs = duplicates.least_alike(100)
    similarity = pairs.filter([reason == "near-duplicate" for reason in pairs["reason"].to_pylist()])["similarity"]
    assert shown == [round(value, 3) for value in sorted(similarity.drop_null().to_pylist())[:7]]
    dropped = duplicates.dropped()
    kept = dict(zip(dropped["row_id"].to_pylist(), dropped["kept_row_id"].to_pylist(), strict=True))
    assert all(kept[pair["row_id"]] == pair["kept_row_id"] for pair in pairs.to_pylist())
