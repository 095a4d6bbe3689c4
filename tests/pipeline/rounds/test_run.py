"""How stages are run: inputs that belong together, parts that are whole, work that is not done twice."""

import json
import pickle
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from curation.base.errors import DataError
from curation.kmeans.config import ClusterConfig
from curation.selectors.config import RandomConfig
from pipeline.artifacts.artifact import Artifact
from pipeline.artifacts.clusters import Clusters
from pipeline.artifacts.manifest import Manifest, Part
from pipeline.artifacts.samples import Samples
from pipeline.errors import StaleArtifactError
from pipeline.rounds.run import open_inputs, run_stage
from pipeline.runtime.config import Resources
from pipeline.runtime.console import Console
from pipeline.runtime.inline import InlineExecutor
from pipeline.sources.config import ImagesConfig
from pipeline.stages.cluster import Cluster
from pipeline.stages.config import EmbedConfig, ShardConfig
from pipeline.stages.dedup import Dedup
from pipeline.stages.embed import Embed
from pipeline.stages.label import Label
from pipeline.stages.select import Select
from pipeline.stages.shard import Shard
from pipeline.stages.stage import Estimate, Stage, StageContext, StageOutput
from tests.helpers import write_images
from trainers.models.config import PixelsConfig

pytestmark = pytest.mark.xdist_group("stages")


def curate(root: Path, source: Path, executor: InlineExecutor, *, seed: int = 0) -> dict[str, Path]:
    """The artifacts of a round without a training, by role."""
    encoder = PixelsConfig(image_size=8, dim=12)
    shard = Shard(ShardConfig(samples_per_shard=16), ImagesConfig(path=source))
    run_stage(shard, root / "samples", {}, executor)
    embed = Embed(EmbedConfig(encoder=encoder), seed)
    run_stage(embed, root / "embeddings", {"samples": root / "samples"}, executor)
    cluster = Cluster(ClusterConfig(levels=(6, 2), resampling_steps=0), seed)
    run_stage(cluster, root / "clusters", {"embeddings": root / "embeddings"}, executor)
    run_stage(Label(_label()), root / "labels", {"clusters": root / "clusters"}, executor)
    return {role: root / role for role in ("samples", "embeddings", "clusters", "labels")}


def _label() -> Any:
    from curation.labelers.config import ClustersLabelerConfig

    return ClustersLabelerConfig()


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory, executor: InlineExecutor) -> tuple[dict[str, Path], dict[str, Path]]:
    """The artifacts of two pools of equally many samples, whose row ids are the same numbers."""
    runs = []
    for seed in (0, 1):
        root = tmp_path_factory.mktemp("run")
        runs.append(curate(root, write_images(root / "source", 40, seed=seed), executor))
    return runs[0], runs[1]


def test_samples_that_were_not_clustered_are_refused(
    two_runs: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, executor: InlineExecutor
) -> None:
    """Their row ids exist and their checksums hold: nothing else would tell that these are other images."""
    ours, theirs = two_runs
    select = Select(RandomConfig(budget=5), 0)
    run_stage(select, tmp_path / "fits", ours, executor)
    for role in ("samples", "embeddings", "labels"):
        with pytest.raises(DataError, match=r"was not made from .*, but from other "):
            run_stage(select, tmp_path / role, ours | {role: theirs[role]}, executor)
        assert not (tmp_path / role).exists()
    dedup = Dedup(_dedup())
    for role in ("samples", "embeddings"):
        given = {name: ours[name] for name in ("samples", "embeddings", "clusters")}
        with pytest.raises(DataError, match=r"was not made from"):
            run_stage(dedup, tmp_path / role, given | {role: theirs[role]}, executor)
    run_stage(dedup, tmp_path / "duplicates", {name: ours[name] for name in ("embeddings", "clusters")}, executor)
    mixed = {"clusters": theirs["clusters"], "duplicates": tmp_path / "duplicates"}
    with pytest.raises(DataError, match=r"was not made from"):
        run_stage(select, tmp_path / "mixed", mixed, executor)


def _dedup() -> Any:
    from curation.dedup.config import DedupConfig

    return DedupConfig(similarity=0.9999)


def test_an_input_of_another_kind_is_refused(two_runs: tuple[dict[str, Path], dict[str, Path]]) -> None:
    ours, _ = two_runs
    stage = Select(RandomConfig(budget=5), 0)
    with pytest.raises(DataError, match="holds samples; clusters is needed here"):
        open_inputs(stage, {"clusters": ours["samples"]})


@pytest.mark.parametrize(
    ("role", "name", "read"),
    [
        ("clusters", "level-1/assignment.npy", lambda path: Clusters.open(path).hierarchy()),
        ("samples", "index/shard-000000.parquet", lambda path: Samples.open(path).index("train", ["row_id"])),
        ("samples", "rejects.parquet", lambda path: list(Samples.open(path).rejects(["source"]))),
    ],
)
def test_damage_that_would_be_believed_is_found(
    two_runs: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, role: str, name: str, read: Callable[[Path], object]
) -> None:
    shutil.copytree(two_runs[0][role], tmp_path / role)
    read(tmp_path / role)
    content = bytearray((tmp_path / role / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / role / name).write_bytes(content)
    with pytest.raises(DataError, match="is damaged: its bytes are not those that were written"):
        read(tmp_path / role)
    (tmp_path / role / name).write_bytes(content[:-1])
    with pytest.raises(DataError, match="is damaged: it has"):
        read(tmp_path / role)
    (tmp_path / role / name).unlink()
    with pytest.raises(DataError, match="is damaged: it cannot be read"):
        read(tmp_path / role)


def test_damaged_embeddings_are_not_clustered(
    two_runs: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, executor: InlineExecutor
) -> None:
    shutil.copytree(two_runs[0]["embeddings"], tmp_path / "embeddings")
    (part, *_) = sorted((tmp_path / "embeddings").glob("*.arrow"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    cluster = Cluster(ClusterConfig(levels=(6,), resampling_steps=0), 0)
    with pytest.raises(DataError, match="is damaged"):
        run_stage(cluster, tmp_path / "clusters", {"embeddings": tmp_path / "embeddings"}, executor)


class Recorder(InlineExecutor):
    """Runs functions here and keeps what each task was sent."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.sent: list[int] = []

    def map(
        self, function: Callable[..., object], calls: Sequence[tuple[object, ...]], *, resources: Resources, on_gpu: bool
    ) -> Iterator[int]:
        self.sent += [len(pickle.dumps(call)) for call in calls]
        return super().map(function, calls, resources=resources, on_gpu=on_gpu)


def test_a_task_is_sent_its_own_shard_only(tmp_path: Path, executor: InlineExecutor) -> None:
    """A list of all shards in each of their tasks grows with the square of the pool."""
    most = []
    for number, per_shard in enumerate((10, 1)):
        root = tmp_path / str(number)
        source = write_images(root / "source", 40)
        recorder = Recorder()
        run_stage(Shard(ShardConfig(samples_per_shard=per_shard), ImagesConfig(path=source)), root / "samples", {}, recorder)
        embed = Embed(EmbedConfig(encoder=PixelsConfig(image_size=8, dim=12)), 0)
        run_stage(embed, root / "embeddings", {"samples": root / "samples"}, recorder)
        most.append(max(recorder.sent))
    assert len(Samples.open(tmp_path / "1" / "samples").shards()) == 40
    assert most[1] <= most[0] + 50


@dataclass(frozen=True)
class Numbers(Artifact):
    kind = "numbers"


@dataclass(frozen=True)
class Count(Stage):
    """Writes numbers, and a line for each into a log."""

    log: Path
    settings_given: dict[str, Any] = field(default_factory=dict)
    name = "count"
    makes = Numbers
    version: ClassVar[int] = 1

    def settings(self) -> dict[str, Any]:
        return self.settings_given

    def make(self, context: StageContext) -> StageOutput:
        items = [(number,) for number in range(4)]
        return StageOutput(context.parts(_count, items, self.log, context.out, num_rows=[1] * 4, label="count"), {})

    def estimate(self, inputs: Mapping[str, Estimate]) -> Estimate:
        return Estimate(4)

    def describe(self, manifest: Manifest) -> str:
        return "4 numbers"


def _count(number: int, log: Path, out: Path) -> list[Part]:
    with log.open("a") as file:
        file.write(f"{number}\n")
    (out / f"{number}.txt").write_text(str(number))
    return [Part.describe(out, f"{number}.txt", 1)]


class Twice(InlineExecutor):
    """Loses what a process has just done, after its parts were recorded, and repeats it, as Ray does."""

    def map(
        self, function: Callable[..., object], calls: Sequence[tuple[object, ...]], *, resources: Resources, on_gpu: bool
    ) -> Iterator[int]:
        list(super().map(function, calls[:3], resources=resources, on_gpu=on_gpu))
        return super().map(function, calls, resources=resources, on_gpu=on_gpu)


def test_a_repeated_portion_does_not_redo_recorded_parts(tmp_path: Path) -> None:
    run_stage(Count(tmp_path / "log"), tmp_path / "out", {}, Twice(Console(quiet=True)))
    assert sorted((tmp_path / "log").read_text().split()) == ["0", "1", "2", "3"]


def test_another_version_of_a_stage_makes_other_work(tmp_path: Path, executor: InlineExecutor) -> None:
    run_stage(Count(tmp_path / "log"), tmp_path / "out", {}, executor)

    class Later(Count):
        version: ClassVar[int] = 2

    with pytest.raises(StaleArtifactError, match="made differently: by another version of windrow"):
        run_stage(Later(tmp_path / "log"), tmp_path / "out", {}, executor)
    with pytest.raises(StaleArtifactError, match=r"depth was the default, now 3"):
        run_stage(Count(tmp_path / "log", {"depth": 3}), tmp_path / "out", {}, executor)


def test_labels_of_another_number_of_rows_do_not_shift(
    two_runs: tuple[dict[str, Path], dict[str, Path]], tmp_path: Path, executor: InlineExecutor
) -> None:
    """The training list has, for each selected row, its own place and its own labels, in pieces of any size."""
    import pyarrow.parquet as pq

    from pipeline.stages import select as module

    ours, _ = two_runs
    lists = []
    for number, rows in enumerate((1 << 18, 3)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_BLOCK_ROWS", rows)
            run_stage(Select(RandomConfig(budget=20), 0), tmp_path / str(number), ours, executor)
        lists.append(pq.read_table(tmp_path / str(number) / "training.parquet"))
    assert lists[0].equals(lists[1])
    labels = {row["row_id"]: row for row in pq.read_table(ours["labels"] / "labels.parquet").to_pylist()}
    index = {
        row["row_id"]: row for row in Samples.open(ours["samples"]).index("train", ["row_id", "shard", "offset"]).to_pylist()
    }
    assert lists[0].num_rows == 20
    for row in lists[0].to_pylist():
        assert (row["level_1"], row["level_2"]) == (labels[row["row_id"]]["level_1"], labels[row["row_id"]]["level_2"])
        assert (row["shard"], row["offset"]) == (index[row["row_id"]]["shard"], index[row["row_id"]]["offset"])


def test_a_finished_stage_that_lost_a_part_is_not_finished(tmp_path: Path, executor: InlineExecutor) -> None:
    run_stage(Count(tmp_path / "log"), tmp_path / "out", {}, executor)
    (tmp_path / "out" / "2.txt").unlink()
    with pytest.raises(DataError, match=r"2\.txt is damaged: it cannot be read"):
        run_stage(Count(tmp_path / "log"), tmp_path / "out", {}, executor)


def test_rows_of_samples_are_looked_up_by_id(two_runs: tuple[dict[str, Path], dict[str, Path]]) -> None:
    samples = Samples.open(two_runs[0]["samples"])
    index = samples.index("train", ["row_id", "source"])
    row_ids = index["row_id"].to_numpy()
    order = np.random.default_rng(0).permutation(len(row_ids))
    looked_up = samples.rows(row_ids[order], ["source", "row_id"], "train")
    assert looked_up["source"].to_pylist() == index["source"].take(order).to_pylist()
    held_out = samples.index("test", ["row_id"])["row_id"].to_numpy()
    with pytest.raises(DataError, match=r"1 of 3 rows are no samples of the split train"):
        samples.rows(np.array([row_ids[0], held_out[0], row_ids[1]]), ["source"], "train")
    assert json.loads((samples.directory / "manifest.json").read_text())["parts"][0]["split"] == "train"
