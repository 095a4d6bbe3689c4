"""The ladder of deduplication on images: a run's own shards, embeddings and clusters."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.config import DedupConfig
from pipeline import dedup
from pipeline.stage import Work
from tests.helpers import windrow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty photographs of noise blobs; the first ten again as JPEGs half the size; the next five held out again, brighter."""
    root = tmp_path_factory.mktemp("images")
    draws = np.random.default_rng(0)
    for name in ("train", "test"):
        (root / "source" / name).mkdir(parents=True)
    for number in range(40):
        small = draws.integers(0, 200, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(small).resize((64, 64), Image.Resampling.BICUBIC)
        image.save(root / "source" / "train" / f"{number:02d}.png")
        if number < 10:
            image.resize((32, 32)).save(root / "source" / "train" / f"{number:02d} small.jpg", quality=85)
        if 10 <= number < 15:
            image.point(lambda value: value + 12).save(root / "source" / "test" / f"{number:02d}.png")
    Image.new("RGB", (64, 64), "black").save(root / "source" / "train" / "black.png")
    Image.new("RGB", (64, 64), "white").save(root / "source" / "train" / "white.png")
    for command in (
        ["shard", "source", "samples", "samples_per_shard=20"],
        ["embed", "samples", "embeddings", "encoder.dim=16"],
        ["cluster", "embeddings", "clusters", "levels=[6]", "resampling_steps=0"],
    ):
        paths = [str(root / word) if "=" not in word else word for word in command[1:]]
        done = windrow(command[0], *paths)
        assert done.returncode == 0, done.stderr
    return root


def names(root: Path) -> dict[int, str]:
    tables = [pq.read_table(path) for path in sorted((root / "samples" / "index").glob("*.parquet"))]
    return {row["row_id"]: row["source"] for table in tables for row in table.to_pylist()}


def run(root: Path, out: str, *settings: str) -> list[tuple[str, str, str]]:
    """Dropped file, the file it goes for, and the reason."""
    done = windrow(
        "dedup", f"{root}/embeddings", f"{root}/clusters", f"{root}/{out}", *settings, "--samples", f"{root}/samples"
    )
    assert done.returncode == 0, done.stderr
    found = pq.read_table(root / out / "duplicates.parquet").to_pylist()
    known = names(root)
    return [(known[row["row_id"]], known[row["kept_row_id"]], row["reason"]) for row in found]


def test_hashes_find_the_same_picture_in_another_file(prepared: Path) -> None:
    found = run(prepared, "hashes", "similarity=0.9999", "hash_bits=10", "keep=largest")
    assert {(gone, kept) for gone, kept, why in found if why == "near-duplicate"} == {
        (f"train/{n:02d} small.jpg", f"train/{n:02d}.png") for n in range(10)
    }
    assert {(gone, kept) for gone, kept, why in found if why == "near held-out"} == {
        (f"train/{n:02d}.png", f"test/{n:02d}.png") for n in range(10, 15)
    }


def test_without_hashes_the_embeddings_tell(prepared: Path) -> None:
    found = run(prepared, "embeddings-only", "similarity=0.98", "hash_bits=null", "protect=false")
    assert {gone.split("/")[1][:2] for gone, _, _ in found} >= {f"{n:02d}" for n in range(10)}
    assert {why for _, _, why in found} == {"near-duplicate"}
    edges = pq.read_table(sorted((prepared / "embeddings-only").glob("edges-*.parquet"))[0])
    assert edges["bits"].null_count == edges.num_rows
    assert json.loads((prepared / "embeddings-only" / "manifest.json").read_text())["statistics"]["held_out"] == 0


def test_edges_are_looked_at_a_part_at_a_time(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(prepared, "loose", "similarity=0.9")
    files = sorted((prepared / "loose").glob("edges-*.parquet"))
    inputs = {name: prepared / name for name in ("embeddings", "clusters", "samples")}
    work = Work(tmp_path, inputs, runtime=None)  # type: ignore[arg-type]
    work.scratch.mkdir()
    joined = dedup._Joined.of(work, protect=True)
    whole, recall = dedup._decide(files, joined, work, DedupConfig())
    assert whole.to_pylist() == pq.read_table(prepared / "loose" / "duplicates.parquet").to_pylist()
    assert whole.num_rows > 14
    assert recall == 1.0
    monkeypatch.setattr(dedup, "_EDGES_HELD", 7)
    assert dedup._decide(files, joined, work, DedupConfig())[0].to_pylist() == whole.to_pylist()
    assert (work.scratch / "components").exists()
