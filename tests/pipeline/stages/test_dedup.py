"""The ladder of deduplication on images: shards, embeddings and clusters of our own."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from curation.dedup.config import DedupConfig
from curation.kmeans.config import ClusterConfig
from pipeline.deduplication import decide as deciding
from pipeline.deduplication.joined import JoinedRows
from pipeline.rounds.run import run_stage
from pipeline.runtime.inline import InlineExecutor
from pipeline.sources.config import ImagesConfig
from pipeline.stages.cluster import Cluster
from pipeline.stages.config import EmbedConfig, ShardConfig
from pipeline.stages.dedup import Dedup
from pipeline.stages.embed import Embed
from pipeline.stages.shard import Shard
from trainers.models.config import PixelsConfig

pytestmark = pytest.mark.xdist_group("stages")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> Path:
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
    shard, embed = ShardConfig(samples_per_shard=20), EmbedConfig(encoder=PixelsConfig(dim=16))
    run_stage(Shard(shard, ImagesConfig(path=root / "source")), root / "samples", {}, executor)
    run_stage(Embed(embed, 0, has_encoder=False), root / "embeddings", {"samples": root / "samples"}, executor)
    cluster = ClusterConfig(levels=(6,), resampling_steps=0)
    run_stage(Cluster(cluster, 0), root / "clusters", {"embeddings": root / "embeddings"}, executor)
    return root


def names(root: Path) -> dict[int, str]:
    tables = [pq.read_table(path) for path in sorted((root / "samples" / "index").glob("*.parquet"))]
    return {row["row_id"]: row["source"] for table in tables for row in table.to_pylist()}


def run(root: Path, executor: InlineExecutor, out: str, **settings: Any) -> list[tuple[str, str, str]]:
    """Dropped file, the file it goes for, and the reason."""
    inputs = {name: root / name for name in ("embeddings", "clusters", "samples")}
    run_stage(Dedup(DedupConfig(**settings)), root / out, inputs, executor)
    found = pq.read_table(root / out / "duplicates.parquet").to_pylist()
    known = names(root)
    return [(known[row["row_id"]], known[row["kept_row_id"]], row["reason"]) for row in found]


def test_hashes_find_the_same_picture_in_another_file(prepared: Path, executor: InlineExecutor) -> None:
    found = run(prepared, executor, "hashes", similarity=0.9999, hash_bits=10, keep="largest")
    assert {(gone, kept) for gone, kept, why in found if why == "near-duplicate"} == {
        (f"train/{n:02d} small.jpg", f"train/{n:02d}.png") for n in range(10)
    }
    assert {(gone, kept) for gone, kept, why in found if why == "near held-out"} == {
        (f"train/{n:02d}.png", f"test/{n:02d}.png") for n in range(10, 15)
    }


def test_without_hashes_the_embeddings_tell(prepared: Path, executor: InlineExecutor) -> None:
    found = run(prepared, executor, "embeddings-only", similarity=0.98, hash_bits=None, protect=False)
    assert {gone.split("/")[1][:2] for gone, _, _ in found} >= {f"{n:02d}" for n in range(10)}
    assert {why for _, _, why in found} == {"near-duplicate"}
    edges = pq.read_table(sorted((prepared / "embeddings-only").glob("edges-*.parquet"))[0])
    assert edges["bits"].null_count == edges.num_rows
    assert json.loads((prepared / "embeddings-only" / "manifest.json").read_text())["statistics"]["held_out"] == 0


def test_edges_are_looked_at_a_part_at_a_time(
    prepared: Path, executor: InlineExecutor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(prepared, executor, "loose", similarity=0.9)
    files = sorted((prepared / "loose").glob("edges-*.parquet"))
    known = pq.read_table(prepared / "loose" / "duplicates.parquet").to_pylist()
    joined = JoinedRows.save(prepared / "embeddings", None, prepared / "clusters", tmp_path / "joined", True)

    def decide(out: str) -> dict[str, Any]:
        (tmp_path / out).mkdir()
        _, counts = deciding.decide(files, joined, DedupConfig(), None, None, tmp_path / out, tmp_path / out)
        assert pq.read_table(tmp_path / out / "duplicates.parquet").to_pylist() == known
        return counts

    counts = decide("whole")
    assert counts["dropped"] > 14
    assert counts["recall"] == 1.0
    monkeypatch.setattr(deciding, "_EDGES_HELD", 7)
    assert decide("pieces") == counts
    assert (tmp_path / "pieces" / "components").exists()
