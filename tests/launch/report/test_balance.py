from pathlib import Path

import pytest

from pipeline.artifacts.manifest import Manifest
from tests.launch.report.runs import words

pytestmark = pytest.mark.xdist_group("report")


def test_balance_is_what_the_manifest_says(labelled: Path, labelled_page: str) -> None:
    text = words(labelled_page)
    statistics = Manifest.read(labelled / "round-0/select").statistics
    for measured in statistics["balance"].values():
        assert f"TV {measured['tv_pool']:.3f} → {measured['tv_selected']:.3f}" in text
        assert f"{measured['tv_selected']:.3f} · {measured['covered']:.0%} covered" in text
    assert f"{statistics['selected']} selected in round 0" in text
    vendi = statistics["vendi"]
    assert f"Vendi score {vendi['pool']:.1f} → {vendi['selected']:.1f}" in text
    assert f"{statistics['distance_to_selected']['mean']:.2f} on average" in text


def test_without_labels_only_clusters_are_shown(unlabelled_page: str) -> None:
    text = words(unlabelled_page)
    assert "classes" not in text
    assert "12 level-1 clusters" in text
