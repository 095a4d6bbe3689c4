import os
from pathlib import Path

import pytest

from curation.errors import DataError
from pipeline.artifacts import fingerprint
from pipeline.config import EmbedConfig
from pipeline.embed import Embed
from pipeline.train import Train
from trainers.config import EvaluateConfig, TimmConfig, TrainConfig


def fingerprints(weights: Path) -> list[str]:
    encoder = TimmConfig(weights=weights)
    train = Train(TrainConfig(encoder=encoder), 0, EvaluateConfig())
    embed = Embed(EmbedConfig(encoder=encoder), 0, has_encoder=False)
    return [fingerprint(stage.kind, stage.settings(), {}) for stage in (train, embed)]


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


def test_evaluating_on_the_way_is_no_other_training() -> None:
    plain, evaluated = (
        Train(TrainConfig(evaluate_every=every, tensorboard=bool(every)), 0, EvaluateConfig(neighbours=k))
        for every, k in ((None, (3,)), (1.0, (5,)))
    )
    assert plain.settings() == evaluated.settings()
