from pathlib import Path

import numpy as np
import pytest

from tests.trainers.data.test_loader import shards, spoil
from trainers.data.samples import BadSampleError
from trainers.evaluation.embed import embed, squares
from trainers.models.config import PixelsConfig
from trainers.models.encoders import build_encoder


def test_batches_are_read_ahead_and_each_feature_is_that_of_its_sample(tmp_path: Path) -> None:
    samples = shards(tmp_path)
    encoder = build_encoder(PixelsConfig(image_size=8, dim=2), squares(samples, np.arange(10), 8))
    indices = np.array([9, 3, 0, 7, 5, 1, 8])
    whole = embed(encoder, samples, indices)
    assert len(np.unique(whole[:, 0].round(3))) == 7
    for batch_size in (1, 3, 7):
        assert np.allclose(embed(encoder, samples, indices, batch_size=batch_size), whole, atol=1e-5)
    spoil(samples, 5)
    with pytest.raises(BadSampleError, match="Sample 5 at byte"):
        embed(encoder, samples, indices, batch_size=3)
