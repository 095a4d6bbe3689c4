import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from launch.report import page as report
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.config import RunConfig
from pipeline.rounds.graph import steps
from pipeline.rounds.run import run_steps
from pipeline.runtime.inline import InlineExecutor

pytestmark = pytest.mark.xdist_group("report")  # one pair of runs for all of them
STAGES = ("samples", "round-0/embed", "round-0/cluster", "round-0/label", "round-0/select")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> Path:
    return make_run(tmp_path_factory.mktemp("labelled"), executor, folders=("train/dark", "train/light"))


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> Path:
    return make_run(tmp_path_factory.mktemp("unlabelled"), executor, folders=(".",))


def make_run(directory: Path, executor: InlineExecutor, folders: tuple[str, ...]) -> Path:
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
    config = write_config(run_dir, source)
    run_steps([step for step in steps(config) if step.name in STAGES], run_dir, executor, redo=False)
    return run_dir


def write_config(run_dir: Path, source: Path) -> RunConfig:
    config = RunConfig.model_validate(
        {
            "run_dir": run_dir,
            "rounds": 1,
            "source": {"type": "images", "path": source},
            "shard": {"samples_per_shard": 16},
            "embed": {"encoder": {"type": "pixels", "image_size": 8, "dim": 8}},
            "cluster": {"levels": [12, 4], "resampling_steps": 1},
            "select": {"strategy": "balanced", "fraction": 0.25},
        }
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return config


def describe_again(directory: Path) -> None:
    """Make the manifest fit parts that were changed on purpose."""
    manifest = Manifest.read(directory)
    parts = tuple(Part.describe(directory, part.path, part.num_rows) for part in manifest.parts)
    manifest.model_copy(update={"parts": parts}).write(directory)


def words(page: Path) -> str:
    """The text of a page, without tags and with single spaces."""
    body = page.read_text().split("<body>")[1].split("<script>")[0]
    return " ".join(re.sub(r"<[^>]*>", " ", body).split())


def test_page_is_self_contained(labelled: Path) -> None:
    page = report.write(labelled)
    text = page.read_text()
    assert page == labelled / "report.html"
    assert not re.search(r"https?://|//[a-z]+\.|@import", text)
    assert not re.findall(r"\b(?:src|srcset|poster)\s*=", text)
    assert all(href.startswith("#") for href in re.findall(r"\bhref\s*=\s*\"([^\"]*)", text))
    assert re.findall(r"url\((.{11})", text) == ["data:image/"]
    assert "default-src 'none'" in text


def test_counts_files_by_reason(labelled: Path) -> None:
    text = words(report.write(labelled))
    counts = Manifest.read(labelled / "samples").statistics["rejected"]
    assert counts == {"duplicate": 3, "too small": 2, "corrupt image": 1, "empty file": 1}
    for reason, count in counts.items():
        assert f"{reason} · {count}" in text
        assert f"{count} set aside: {reason}" in text
    assert "47 files found" in text
    assert "40 in the pool" in text


def test_balance_is_what_the_manifest_says(labelled: Path) -> None:
    text = words(report.write(labelled))
    statistics = Manifest.read(labelled / "round-0/select").statistics
    for measured in statistics["balance"].values():
        assert f"TV {measured['tv_pool']:.3f} → {measured['tv_selected']:.3f}" in text
        assert f"{measured['tv_selected']:.3f} · {measured['covered']:.0%} covered" in text
    assert f"{statistics['selected']} selected in round 0" in text
    vendi = statistics["vendi"]
    assert f"Vendi score {vendi['pool']:.1f} → {vendi['selected']:.1f}" in text
    assert f"{statistics['distance_to_selected']['mean']:.2f} on average" in text


def test_cluster_table_is_what_the_manifest_says(labelled: Path) -> None:
    text = words(report.write(labelled))
    for level, measured in enumerate(Manifest.read(labelled / "round-0/cluster").statistics["levels"], start=1):
        sizes = np.load(labelled / f"round-0/cluster/level-{level}/sizes.npy")
        assert measured["imbalance"] == pytest.approx(len(sizes) * (sizes**2).sum() / sizes.sum() ** 2)
        shown = (
            measured["smallest"],
            measured["largest"],
            f"{measured['imbalance']:.2f}",
            f"{measured['kl_from_uniform']:.3f}",
        )
        expected = f"0 {level} {measured['clusters']} {' '.join(map(str, shown))} {measured['silhouette']:.3f}"
        assert expected in text
    assert "Churn" not in text  # with one round
    assert "AMI" not in text  # with no evaluation


def test_rounds_are_compared_whatever_their_clusters_are_called(labelled: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(labelled, run_dir)
    shutil.copytree(run_dir / "round-0", run_dir / "round-1")
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    (run_dir / "config.yaml").write_text(yaml.safe_dump({**config, "rounds": 2}))
    path = run_dir / "round-1/cluster/level-1/assignment.npy"
    upper = run_dir / "round-1/cluster/level-2/assignment.npy"
    names = np.random.default_rng(0).permutation(12)
    fine, coarse = np.load(path), np.load(upper)
    np.save(path, names[fine].astype(np.int32))
    np.save(upper, coarse[np.argsort(names)])
    describe_again(run_dir / "round-1/cluster")
    assert len(re.findall(r"0\.\d{3} 1\.000 0\.0%", words(report.write(run_dir)))) == 2
    fine[np.flatnonzero(fine == np.argmax(np.bincount(fine)))[:2]] = np.argmin(np.bincount(fine))
    np.save(path, names[fine].astype(np.int32))
    describe_again(run_dir / "round-1/cluster")
    assert re.search(r"0\.\d{3} 0\.\d{3} 5\.0%", words(report.write(run_dir)))  # two rows of 40 have moved


def test_runs_that_know_less_have_a_page_too(labelled: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(labelled, run_dir)
    for stage, new in (("cluster", ("imbalance", "kl_from_uniform", "silhouette")), ("select", ("covered",))):
        path = run_dir / f"round-0/{stage}/manifest.json"
        manifest = json.loads(path.read_text())
        levels = manifest["statistics"].get("levels") or manifest["statistics"]["balance"].values()
        for measured in levels:
            for name in new:
                del measured[name]
        path.write_text(json.dumps(manifest))
    text = words(report.write(run_dir))
    assert "Round Level Clusters Smallest Largest 0 1 12" in text
    assert "covered" not in text
    assert "could not be read" not in text


def test_file_names_are_escaped(labelled: Path) -> None:
    text = report.write(labelled).read_text()
    assert "&lt;b&gt;x.png" in text
    assert "<b>x" not in text


def test_says_what_is_missing(labelled: Path) -> None:
    text = words(report.write(labelled))
    assert "Not finished yet: baseline/evaluate, round-0/train, round-0/evaluate" in text
    assert "Not there yet: nothing has been trained or evaluated" in text


def test_same_run_same_page(labelled: Path) -> None:
    first = report.write(labelled).read_bytes()
    assert report.write(labelled).read_bytes() == first


def test_every_map_point_and_cluster_has_its_picture(labelled: Path) -> None:
    text = report.write(labelled).read_text()
    data = json.loads(re.findall(r"const data = (\{.*?\}), columns", text)[0])
    assert data["row"] == list(range(40))
    assert min(data["picture"]) >= 0
    assert sum(data["on"][0]) == 10
    assert sorted(set(data["class"])) == ["dark", "light"]
    assert text.count('data-panel="clusters"') == 2  # one for each level


def test_without_labels_the_map_shows_clusters(unlabelled: Path) -> None:
    text = words(report.write(unlabelled))
    assert "Colours are the coarsest clusters" in text
    assert "classes" not in text
    assert "12 level-1 clusters" in text


def test_goes_on_without_a_damaged_file(unlabelled: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(unlabelled, run_dir)
    (run_dir / "samples/rejects.parquet").write_bytes(b"cut short")
    (run_dir / "round-0/cluster/level-1/assignment.npy").unlink()
    text = words(report.write(run_dir))
    assert "Some of the run could not be read" in text
    assert "47 files found" in text


def test_training_under_way_shows_its_loss(unlabelled: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(unlabelled, run_dir)
    (run_dir / "round-0/train").mkdir()
    lines = [json.dumps({"step": step, "loss": 5 / step}) for step in range(1, 9)]
    (run_dir / "round-0/train/metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 9, "lo')
    assert "Training loss" in words(report.write(run_dir))
    assert "while training" not in words(report.write(run_dir))
    for name, score in (("kNN", {"knn": 0.5}), ("RankMe", {"rankme": 7.0})):
        lines = [json.dumps({"step": step, "rankme": 1.0, **score}) for step in (0, 4, 8)]
        (run_dir / "round-0/train/evaluations.jsonl").write_text("\n".join(lines) + "\n")
        text = report.write(run_dir).read_text()
        assert f"{name} while training" in text
        assert ">50%<" in text or name != "kNN"


def test_a_run_with_nothing_but_its_settings(tmp_path: Path) -> None:
    write_config(tmp_path, tmp_path / "images")
    text = words(report.write(tmp_path))
    assert "Nothing is finished yet" in text
    assert "round-0/train" in text
    assert "samples_per_shard: 16" in text


def test_rejects_have_pictures_wherever_they_lie(labelled: Path, unlabelled: Path) -> None:
    """Duplicates and small images can be seen, what is broken or empty cannot."""
    for run_dir in (labelled, unlabelled):
        text = report.write(run_dir).read_text()
        strip = text[text.index("set aside, some for each reason") : text.index('<section id="balance">')]
        assert strip.count('class="pic"') == 3 * 2 + 2
        assert strip.count('class="pic none"') == 2
