"""Clustering, deduplication and selection of embeddings that windrow did not make."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curation.base.errors import ConfigError, DataError
from curation.dedup.config import DedupConfig
from curation.kmeans.config import ClusterConfig
from curation.selectors.config import BalancedConfig
from pipeline.errors import StaleArtifactError
from pipeline.rounds.run import run_stage
from pipeline.runtime.inline import InlineExecutor
from pipeline.stages.cluster import Cluster
from pipeline.stages.dedup import Dedup
from pipeline.stages.select import Select
from tests.helpers import windrow

pytestmark = pytest.mark.xdist_group("stages")


def planted(num: int = 600, copies: int = 60, dim: int = 16) -> np.ndarray:
    """Unit rows of which the last `copies` are near-duplicates of the first."""
    draws = np.random.default_rng(0)
    centres = draws.standard_normal((12, dim))
    rows = centres[draws.integers(0, 12, num)] + 0.8 * draws.standard_normal((num, dim))
    rows[-copies:] = rows[:copies] + 0.01 * draws.standard_normal((copies, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def clustered(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> Path:
    place = tmp_path_factory.mktemp("own")
    np.save(place / "mine.npy", planted())
    config = ClusterConfig(levels=(30, 5), resampling_steps=2)
    run_stage(Cluster(config, 0), place / "clusters", {"embeddings": place / "mine.npy"}, executor)
    return place


@dataclass(frozen=True)
class Deduplicate:
    """Calls the stage on what is clustered."""

    place: Path
    out: Path
    executor: InlineExecutor

    def __call__(self, name: str, inputs: dict[str, Path] | None = None, **settings: Any) -> Path:
        given = {"embeddings": self.place / "mine.npy", "clusters": self.place / "clusters", **(inputs or {})}
        run_stage(Dedup(DedupConfig(**settings)), self.out / name, given, self.executor)
        return self.out / name


@pytest.fixture
def deduplicate(clustered: Path, tmp_path: Path, executor: InlineExecutor) -> Deduplicate:
    return Deduplicate(clustered, tmp_path, executor)


def test_near_duplicates_are_found_and_left_out_of_the_selection(tmp_path: Path) -> None:
    """By the verbs; what else they can do is tested without them."""
    np.save(tmp_path / "mine.npy", planted())
    place = str(tmp_path)
    verbs = (
        ["cluster", "mine.npy", "clusters", "levels=[30,5]", "resampling_steps=2", "--inline"],
        ["dedup", "mine.npy", "clusters", "duplicates", "similarity=0.98", "--inline"],
        ["select", "clusters", "selection", "--duplicates", "duplicates", "--embeddings", "mine.npy", "fraction=0.9"],
    )
    for verb, *arguments in verbs:
        done = windrow(verb, *(word if "=" in word or word.startswith("-") else f"{place}/{word}" for word in arguments))
        assert done.returncode == 0, done.stderr
    rows = planted().astype(np.float64)
    similar = np.triu(rows @ rows.T >= 0.98, 1)
    edges = pq.read_table(tmp_path / "duplicates" / "edges-000000.parquet").to_pydict()
    pairs = {tuple(sorted(pair)) for pair in zip(edges["row_id"], edges["other_row_id"], strict=True)}
    assert pairs == set(zip(*(column.tolist() for column in np.nonzero(similar)), strict=True))
    assert pairs >= {(row, 540 + row) for row in range(60)}
    gone = dropped(tmp_path / "duplicates")
    assert len(gone) >= 60
    assert {tuple(sorted((row, kept))) for row, (kept, _) in gone.items()} <= pairs
    selected = pq.read_table(tmp_path / "selection" / "selection.parquet")["row_id"].to_pylist()
    assert set(selected) == set(range(600)) - gone.keys()  # fewer than the budget are left
    assert statistics(tmp_path / "selection")["distance_to_selected"]["mean"] >= 0
    assert not (tmp_path / "selection" / "training.parquet").exists()


def dropped(directory: Path) -> dict[int, tuple[int, str]]:
    """Row id to the row it goes for, and why."""
    table = pq.read_table(directory / "duplicates.parquet").to_pydict()
    return {row: (kept, why) for row, kept, why in zip(*table.values(), strict=True)}


def statistics(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())["statistics"]


def test_other_files_are_another_input(tmp_path: Path, executor: InlineExecutor) -> None:
    stage = Cluster(ClusterConfig(levels=(30, 5), resampling_steps=0), 0)
    inputs = {"embeddings": tmp_path / "mine.npy"}
    np.save(tmp_path / "mine.npy", planted())
    first = run_stage(stage, tmp_path / "clusters", inputs, executor)
    assert run_stage(stage, tmp_path / "clusters", inputs, executor) == first
    np.save(tmp_path / "mine.npy", planted()[:500])
    with pytest.raises(StaleArtifactError, match="its embeddings changed"):
        run_stage(stage, tmp_path / "clusters", inputs, executor)


def test_deduplication_needs_directions(deduplicate: Deduplicate, tmp_path: Path) -> None:
    config = ClusterConfig(levels=(30,), normalize=False, resampling_steps=0)
    run_stage(Cluster(config, 0), tmp_path / "clusters", {"embeddings": deduplicate.place / "mine.npy"}, deduplicate.executor)
    with pytest.raises(ConfigError, match="normalize=true"):
        deduplicate("refused", {"clusters": tmp_path / "clusters"})


def test_members_and_repeats_are_settings(clustered: Path, tmp_path: Path, executor: InlineExecutor) -> None:
    config = BalancedConfig(budget=900, members="closest", max_repeats=2)
    run_stage(Select(config, 0), tmp_path / "out", {"clusters": clustered / "clusters"}, executor)
    table = pq.read_table(tmp_path / "out" / "selection.parquet")
    assert sum(table["repeats"].to_pylist()) == 900
    assert max(table["repeats"].to_pylist()) == 2
    assert statistics(tmp_path / "out")["exhausted"].keys() == {"level_1", "level_2"}


def test_nothing_like_a_held_out_row_stays(deduplicate: Deduplicate, tmp_path: Path) -> None:
    """Rows 0 to 59 have near-duplicates; rows 100 to 109 do not, but the held-out rows are like them, and like row 0."""
    rows = planted()
    held_out = np.concatenate([rows[100:110] + 0.01, rows[:1], np.repeat(rows[200:201] * 3, 30, axis=0)])
    np.save(tmp_path / "held-out.npy", held_out)
    out = deduplicate("out", {"held_out": tmp_path / "held-out.npy"}, similarity=0.98)
    unit = held_out / np.linalg.norm(held_out, axis=1, keepdims=True)
    near = rows.astype(np.float64) @ unit.T.astype(np.float64) >= 0.98
    gone = dropped(out)
    assert {row for row, (_, why) in gone.items() if why == "near held-out"} == set(np.flatnonzero(near.any(1)).tolist())
    assert {0, 540, 200, *range(100, 110)} <= gone.keys()
    assert all(near[row, kept] for row, (kept, why) in gone.items() if why == "near held-out")
    left = np.setdiff1d(np.arange(600), list(gone))
    assert not np.triu(rows[left].astype(np.float64) @ rows[left].T >= 0.98, 1).any()
    assert statistics(out)["recall"] == 1.0
    assert statistics(out)["held_out"] == 41


def test_visits_left_out_show_in_the_recall(deduplicate: Deduplicate) -> None:
    found = statistics(deduplicate("out", similarity=0.7, max_visits=0))
    assert found["missed_visits"] > 0
    assert found["recall"] < 1


def test_a_stricter_setting_needs_the_earlier_pairs_only(deduplicate: Deduplicate) -> None:
    loose = deduplicate("loose", similarity=0.9)
    strict = deduplicate("strict", similarity=0.97, rule="greedy")
    assert dropped(deduplicate("again", {"edges": loose}, similarity=0.97, rule="greedy")) == dropped(strict)
    assert len(dropped(strict)) < len(dropped(loose))
    with pytest.raises(ConfigError, match=r"similarity=0\.9"):
        deduplicate("looser", {"edges": loose}, similarity=0.8)
    with pytest.raises(ConfigError, match="was made from other"):
        deduplicate("other", {"edges": loose, "held_out": deduplicate.place / "mine.npy"}, similarity=0.97)


def test_which_of_two_stays_may_be_a_matter_of_scores(deduplicate: Deduplicate, tmp_path: Path) -> None:
    np.save(tmp_path / "scores.npy", np.arange(600))
    gone = dropped(deduplicate("out", {"scores": tmp_path / "scores.npy"}, similarity=0.995, keep="scores"))
    assert set(range(60)) <= gone.keys()
    assert all(kept > row for row, (kept, _) in gone.items())
    np.save(tmp_path / "few.npy", np.arange(599))
    with pytest.raises(DataError, match="must hold 600"):
        deduplicate("refused", {"scores": tmp_path / "few.npy"}, similarity=0.995, keep="scores")
    with pytest.raises(ConfigError, match="--scores"):
        deduplicate("without", similarity=0.995, keep="scores")


def test_a_selection_from_nothing_is_refused(deduplicate: Deduplicate, tmp_path: Path) -> None:
    out = deduplicate("out", {"held_out": deduplicate.place / "mine.npy"}, similarity=0.9)
    inputs = {"clusters": deduplicate.place / "clusters", "duplicates": out}
    with pytest.raises(DataError, match="similarity"):
        run_stage(Select(BalancedConfig(budget=10), 0), tmp_path / "selection", inputs, deduplicate.executor)
