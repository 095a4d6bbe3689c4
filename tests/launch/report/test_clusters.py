import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from launch.report.page import write
from pipeline.artifacts.manifest import Manifest
from tests.launch.report.runs import copy_of, describe_again, words

pytestmark = pytest.mark.xdist_group("report")


def test_table_is_what_the_manifest_says(labelled: Path, labelled_page: str) -> None:
    text = words(labelled_page)
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
    run_dir = copy_of(labelled, tmp_path)
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
    page = write(run_dir).read_text()
    assert len(re.findall(r"0\.\d{3} 1\.000 0\.0%", words(page))) == 2
    assert page.count('data-panel="clusters"') == 4  # one for each level of each round
    assert re.search(r"also selected in the round before 0 10 25\.0% . 1 10 25\.0% 10 \(100%\)", words(page))
    fine[np.flatnonzero(fine == np.argmax(np.bincount(fine)))[:2]] = np.argmin(np.bincount(fine))
    np.save(path, names[fine].astype(np.int32))
    describe_again(run_dir / "round-1/cluster")
    assert re.search(r"0\.\d{3} 0\.\d{3} 5\.0%", words(write(run_dir).read_text()))  # two rows of 40 have moved


def test_runs_that_know_less_have_a_page_too(labelled: Path, tmp_path: Path) -> None:
    run_dir = copy_of(labelled, tmp_path)
    for stage, new in (("cluster", ("imbalance", "kl_from_uniform", "silhouette")), ("select", ("covered",))):
        path = run_dir / f"round-0/{stage}/manifest.json"
        manifest = json.loads(path.read_text())
        levels = manifest["statistics"].get("levels") or manifest["statistics"]["balance"].values()
        for measured in levels:
            for name in new:
                del measured[name]
        path.write_text(json.dumps(manifest))
    text = words(write(run_dir).read_text())
    assert "Round Level Clusters Smallest Largest 0 1 12" in text
    assert "covered" not in text
    assert "could not be read" not in text


def test_every_cluster_has_its_pictures(labelled: Path, labelled_page: str) -> None:
    panels = labelled_page[labelled_page.index('data-panel="clusters"') : labelled_page.index('<section id="map">')]
    assert labelled_page.count('data-panel="clusters"') == 2  # one for each level
    sizes = np.load(labelled / "round-0/cluster/level-2/sizes.npy")
    coarse = panels[panels.index('data-level="2"') :]
    assert coarse.count('aria-label="sample ') == np.minimum(sizes, 12).sum()
    for size, selected in re.findall(r"<b>(\d+)</b> samples?</span><span><b>(\d+)</b> selected", coarse):
        assert int(selected) <= int(size)
