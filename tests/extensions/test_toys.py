"""A source, a modality and a stage that live outside of the packages work like those inside."""

import tarfile
from pathlib import Path

import pytest

from pipeline.artifacts.samples import Samples
from pipeline.modalities.modality import MODALITIES
from pipeline.rounds.graph import Step
from pipeline.rounds.run import run_steps
from pipeline.runtime.inline import InlineExecutor
from pipeline.runtime.ray_executor import RayExecutor
from pipeline.sources.source import SOURCES
from pipeline.splits import HELD_OUT, POOL
from pipeline.stages.config import ShardConfig
from pipeline.stages.shard import Shard
from tests.extensions.toys import CountWords, PoemsConfig, WordCount

POEM = "\n".join(["a rose is a rose", "is a rose", "", "roses are red", "violets are blue", "is a rose"]) + "\n"


def graph(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What a user writes: one line each to register, and the steps."""
    monkeypatch.setitem(SOURCES, "poems", "tests.extensions.toys:Poems")
    monkeypatch.setitem(MODALITIES, "lines", "tests.extensions.toys:Lines")
    (root / "poem.txt").write_text(POEM)
    samples = Step("samples", Shard(ShardConfig(samples_per_shard=2), PoemsConfig(path=root / "poem.txt")))
    return [samples, Step("words", CountWords(), {"samples": samples})]


@pytest.mark.xdist_group("stages")
def test_a_source_a_modality_and_a_stage_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: InlineExecutor, ray: RayExecutor
) -> None:
    steps = graph(tmp_path, monkeypatch)
    run_steps(steps, tmp_path / "here", executor, redo=False)
    samples = Samples.open(tmp_path / "here" / "samples")
    assert samples.modality == "lines"
    assert samples.statistics["rejected"] == {"blank line": 1, "duplicate": 1}
    pool = samples.index(POOL, ["source", "num_words", "signature", "members", "known", "label"]).to_pylist()
    assert [(row["source"], row["num_words"], row["signature"]) for row in pool] == [("line 003", 3, 13), ("line 001", 3, 9)]
    assert {row["label"] for row in pool} == {None}
    assert pool[0]["known"] == [("licence", "public domain")]
    assert [member["name"] for member in pool[0]["members"]] == [".note"]
    assert samples.index(HELD_OUT, ["num_words"])["num_words"].to_pylist() == [5, 3]
    with tarfile.open(tmp_path / "here" / "samples" / samples.shards(POOL)[0].path) as tar:
        contents = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    assert sorted(contents.values()) == [b"is a rose", b"note 1", b"note 3", b"roses are red"]
    assert WordCount.open(tmp_path / "here" / "words").statistics == {"words": 14}
    assert steps[1].fingerprint == WordCount.open(tmp_path / "here" / "words").fingerprint

    run_steps(steps, tmp_path / "there", ray, redo=False)
    for path in sorted((tmp_path / "here").rglob("*")):
        if path.is_file() and path.name != "events.jsonl":
            assert (tmp_path / "there" / path.relative_to(tmp_path / "here")).read_bytes() == path.read_bytes(), path
