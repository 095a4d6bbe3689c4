"""Clustering, deduplication and selection of embeddings that windrow did not make."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.helpers import windrow


def planted(num: int = 600, copies: int = 60, dim: int = 16) -> np.ndarray:
    """Unit rows of which the last `copies` are near-duplicates of the first."""
    draws = np.random.default_rng(0)
    centres = draws.standard_normal((12, dim))
    rows = centres[draws.integers(0, 12, num)] + 0.8 * draws.standard_normal((num, dim))
    rows[-copies:] = rows[:copies] + 0.01 * draws.standard_normal((copies, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def clustered(tmp_path: Path) -> Path:
    np.save(tmp_path / "mine.npy", planted())
    done = windrow("cluster", f"{tmp_path}/mine.npy", f"{tmp_path}/clusters", "levels=[30,5]", "resampling_steps=2")
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_near_duplicates_are_found_and_left_out_of_the_selection(clustered: Path) -> None:
    place = str(clustered)
    found = windrow("dedup", f"{place}/mine.npy", f"{place}/clusters", f"{place}/duplicates", "similarity=0.98")
    assert found.returncode == 0, found.stderr
    rows = planted().astype(np.float64)
    similar = np.triu(rows @ rows.T >= 0.98, 1)
    edges = pq.read_table(clustered / "duplicates" / "edges-000000.parquet").to_pydict()
    pairs = {tuple(sorted(pair)) for pair in zip(edges["row_id"], edges["other_row_id"], strict=True)}
    assert pairs == set(zip(*(column.tolist() for column in np.nonzero(similar)), strict=True))
    assert pairs >= {(row, 540 + row) for row in range(60)}
    dropped = pq.read_table(clustered / "duplicates" / "duplicates.parquet").to_pydict()
    assert len(dropped["row_id"]) >= 60
    assert {tuple(sorted(pair)) for pair in zip(dropped["row_id"], dropped["kept_row_id"], strict=True)} <= pairs
    options = ["--duplicates", f"{place}/duplicates", "fraction=0.9"]
    done = windrow("select", f"{place}/clusters", f"{place}/selection", *options)
    assert done.returncode == 0, done.stderr
    selected = pq.read_table(clustered / "selection" / "selection.parquet")["row_id"].to_pylist()
    assert set(selected) == set(range(600)) - set(dropped["row_id"])  # fewer than the budget are left
    assert not (clustered / "selection" / "training.parquet").exists()


def test_coverage_is_measured_where_embeddings_are_given(clustered: Path) -> None:
    options = ["--embeddings", f"{clustered}/mine.npy", "budget=12"]
    done = windrow("select", f"{clustered}/clusters", f"{clustered}/out", *options)
    assert done.returncode == 0, done.stderr
    statistics = json.loads((clustered / "out" / "manifest.json").read_text())["statistics"]
    rows = planted().astype(np.float64)
    chosen = pq.read_table(clustered / "out" / "selection.parquet")["row_id"].to_numpy()
    nearest = np.linalg.norm(rows[:, None] - rows[chosen], axis=2).min(axis=1)
    assert statistics["distance_to_selected"] == pytest.approx({"mean": nearest.mean(), "p95": np.percentile(nearest, 95)})
    fine = np.load(clustered / "clusters" / "level-1" / "assignment.npy")[chosen]
    assert statistics["cluster_balance"]["level_1"]["covered"] == pytest.approx(len(np.unique(fine)) / 30)
    assert statistics["cluster_balance"]["level_2"]["covered"] == 1


def test_other_files_are_another_input(clustered: Path) -> None:
    command = ["cluster", f"{clustered}/mine.npy", f"{clustered}/clusters", "levels=[30,5]", "resampling_steps=2"]
    again = windrow(*command)
    assert "finished already" in again.stderr
    np.save(clustered / "mine.npy", planted()[:500])
    changed = windrow(*command)
    assert changed.returncode == 2
    assert "its embeddings changed" in changed.stderr


def test_deduplication_needs_directions(tmp_path: Path) -> None:
    np.save(tmp_path / "mine.npy", planted())
    windrow("cluster", f"{tmp_path}/mine.npy", f"{tmp_path}/clusters", "levels=[30]", "normalize=false")
    refused = windrow("dedup", f"{tmp_path}/mine.npy", f"{tmp_path}/clusters", f"{tmp_path}/duplicates")
    assert refused.returncode == 2
    assert "normalize=true" in refused.stderr


def test_members_and_repeats_are_settings(clustered: Path) -> None:
    done = windrow("select", f"{clustered}/clusters", f"{clustered}/out", "budget=900", "members=closest", "max_repeats=2")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(clustered / "out" / "selection.parquet")
    assert sum(table["repeats"].to_pylist()) == 900
    assert max(table["repeats"].to_pylist()) == 2
    assert json.loads((clustered / "out" / "manifest.json").read_text())["statistics"]["exhausted"].keys() == {
        "level_1",
        "level_2",
    }


def dropped(directory: Path) -> dict[int, tuple[int, str]]:
    """Row id to the row it goes for, and why."""
    table = pq.read_table(directory / "duplicates.parquet").to_pydict()
    return {row: (kept, why) for row, kept, why in zip(*table.values(), strict=True)}


def statistics(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "manifest.json").read_text())["statistics"]


def test_nothing_like_a_held_out_row_stays(clustered: Path) -> None:
    """Rows 0 to 59 have near-duplicates; rows 100 to 109 do not, but the held-out rows are like them, and like row 0."""
    rows = planted()
    held_out = np.concatenate([rows[100:110] + 0.01, rows[:1], np.repeat(rows[200:201] * 3, 30, axis=0)])
    np.save(clustered / "held-out.npy", held_out)
    place = str(clustered)
    command = ["dedup", f"{place}/mine.npy", f"{place}/clusters", f"{place}/out", "similarity=0.98"]
    done = windrow(*command, "--held-out", f"{place}/held-out.npy")
    assert done.returncode == 0, done.stderr
    unit = held_out / np.linalg.norm(held_out, axis=1, keepdims=True)
    near = rows.astype(np.float64) @ unit.T.astype(np.float64) >= 0.98
    gone = dropped(clustered / "out")
    assert {row for row, (_, why) in gone.items() if why == "near held-out"} == set(np.flatnonzero(near.any(1)).tolist())
    assert {0, 540, 200, *range(100, 110)} <= gone.keys()
    assert all(near[row, kept] for row, (kept, why) in gone.items() if why == "near held-out")
    left = np.setdiff1d(np.arange(600), list(gone))
    assert not np.triu(rows[left].astype(np.float64) @ rows[left].T >= 0.98, 1).any()
    assert statistics(clustered / "out")["recall"] == 1.0
    assert statistics(clustered / "out")["held_out"] == 41


def test_a_stricter_setting_needs_the_earlier_pairs_only(clustered: Path) -> None:
    place = str(clustered)
    command = ["dedup", f"{place}/mine.npy", f"{place}/clusters"]
    assert windrow(*command, f"{place}/loose", "similarity=0.9").returncode == 0
    assert windrow(*command, f"{place}/strict", "similarity=0.97", "rule=greedy").returncode == 0
    again = windrow(*command, f"{place}/again", "similarity=0.97", "rule=greedy", "--edges", f"{place}/loose")
    assert again.returncode == 0, again.stderr
    assert dropped(clustered / "again") == dropped(clustered / "strict")
    assert len(dropped(clustered / "strict")) < statistics(clustered / "loose")["dropped"]
    refused = windrow(*command, f"{place}/no", "similarity=0.8", "--edges", f"{place}/loose")
    assert refused.returncode == 2
    assert "similarity=0.9" in refused.stderr


def test_which_of_two_stays_may_be_a_matter_of_scores(clustered: Path) -> None:
    place = str(clustered)
    np.save(clustered / "scores.npy", np.arange(600))
    command = ["dedup", f"{place}/mine.npy", f"{place}/clusters", f"{place}/out", "similarity=0.995", "keep=scores"]
    assert windrow(*command, "--scores", f"{place}/scores.npy").returncode == 0
    gone = dropped(clustered / "out")
    assert set(range(60)) <= gone.keys()
    assert all(kept > row for row, (kept, _) in gone.items())
    np.save(clustered / "scores.npy", np.arange(599))
    refused = windrow(*command[:3], f"{place}/no", "keep=scores", "--scores", f"{place}/scores.npy")
    assert refused.returncode == 2
    assert "600" in refused.stderr


def test_a_selection_from_nothing_is_refused(clustered: Path) -> None:
    place = str(clustered)
    command = ["dedup", f"{place}/mine.npy", f"{place}/clusters", f"{place}/out", "similarity=0.000001", "--held-out"]
    np.save(clustered / "held-out.npy", planted())
    assert windrow(*command, f"{place}/held-out.npy").returncode == 0
    refused = windrow("select", f"{place}/clusters", f"{place}/selection", "budget=10", "--duplicates", f"{place}/out")
    assert refused.returncode == 2
    assert "similarity" in refused.stderr
