import os
from pathlib import Path

import pytest

from curation.base.errors import DataError
from pipeline.artifacts.manifest import Manifest
from pipeline.artifacts.samples import Samples
from pipeline.rounds.graph import Step
from pipeline.stages.config import EmbedConfig
from pipeline.stages.embed import Embed
from pipeline.stages.train import Train
from trainers.engine.config import TrainConfig
from trainers.evaluation.config import EvaluateConfig
from trainers.models.config import TimmConfig


def fingerprints(weights: Path) -> list[str]:
    encoder = TimmConfig(weights=weights)
    train = Train(TrainConfig(encoder=encoder), 0, EvaluateConfig())
    embed = Embed(EmbedConfig(encoder=encoder), 0, has_encoder=False)
    return [Step("step", stage).fingerprint for stage in (train, embed)]


def test_weights_are_known_by_their_content(tmp_path: Path) -> None:
    first, copy = tmp_path / "a.safetensors", tmp_path / "elsewhere" / "b.safetensors"
    first.write_bytes(b"one")
    copy.parent.mkdir()
    copy.write_bytes(b"one")
    os.utime(copy, (1, 1))
    known = fingerprints(first)
    assert fingerprints(copy) == known
    first.write_bytes(b"two")
    os.utime(first, (1, 1))
    assert not set(fingerprints(first)) & set(known)
    first.unlink()
    with pytest.raises(DataError, match=r"a\.safetensors cannot be read: No such file"):
        fingerprints(first)


def test_an_artifact_of_another_version_is_refused(tmp_path: Path) -> None:
    layout = Samples.layout
    manifest = Manifest(
        kind="samples", layout=layout, version=1, fingerprint="", settings={}, parents={}, ancestors={}, statistics={}
    )
    manifest.write(tmp_path)
    assert Samples.open(tmp_path).manifest == manifest
    manifest.model_copy(update={"layout": layout - 1}).write(tmp_path)
    with pytest.raises(DataError, match=rf"holds samples in layout {layout - 1}; .* reads layout {layout}\. Run the stage"):
        Samples.open(tmp_path)
    manifest.model_copy(update={"format": 2}).write(tmp_path)
    with pytest.raises(DataError, match="made by another version of windrow"):
        Samples.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"kind": "samples", "schema_version": 2}')
    with pytest.raises(DataError, match="made by another version of windrow"):
        Samples.open(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="manifest"):
        Samples.open(tmp_path)


def test_evaluating_on_the_way_is_no_other_training() -> None:
    plain, evaluated = (
        Train(TrainConfig(evaluate_every=every, tensorboard=bool(every)), 0, EvaluateConfig(neighbours=k))
        for every, k in ((None, (3,)), (1.0, (5,)))
    )
    assert plain.settings() == evaluated.settings()
