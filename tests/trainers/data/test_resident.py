import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.trainers.data.test_loader import add_image
from trainers.data.config import ViewsConfig
from trainers.data.loader import Loader
from trainers.data.resident import ResidentImages
from trainers.data.samples import SampleList
from trainers.data.shard_reader import ShardReader

CPU = torch.device("cpu")


def noise(directory: Path, *sizes: tuple[int, int]) -> SampleList:
    with tarfile.open(directory / "0.tar", "w", format=tarfile.USTAR_FORMAT) as tar:
        rows = [
            add_image(tar, row, np.random.default_rng(row).integers(0, 256, (*size, 3), dtype=np.uint8))
            for row, size in enumerate(sizes)
        ]
    return SampleList.of(pa.Table.from_pylist(rows), directory)


@pytest.mark.parametrize("sizes", [(24, 8), (16, 16), (9, 30)])
def test_crops_are_those_of_the_stream(tmp_path: Path, sizes: tuple[int, int]) -> None:
    """Sizes smaller and larger than the boxes: scaled down with a wide filter, and up."""
    samples = noise(tmp_path, *[(20, 26)] * 8)
    config = ViewsConfig(num_local=2, global_size=sizes[0], local_size=sizes[1], local_scale=(0.05, 1.0))
    streamed, resident = (Loader(samples, config, seed=1, global_batch_size=8, max_resident_bytes=most) for most in (0, 10**6))
    for one, other in zip(streamed.batches(3, 4), resident.batches(3, 4), strict=True):
        assert one.row_id.tolist() == other.row_id.tolist()
        assert np.array_equal(one.draws.numbers, other.draws.numbers)
        for a, b in ((one.global_crops, other.global_crops), (one.local_crops, other.local_crops)):
            assert a.shape == b.shape
            assert b.dtype == torch.uint8
            assert (a.int() - b.int()).abs().max() <= 1  # the stream's rows are rounded before its columns are scaled


def test_only_images_of_one_size_that_fit_are_kept(tmp_path: Path) -> None:
    num_bytes = 3 * 3 * 6 * 5
    samples = noise(tmp_path, (6, 5), (6, 5), (6, 5))
    kept = ResidentImages.of(samples, num_bytes, CPU, 2)
    assert kept is not None
    assert kept.pixels.shape == (3, 3, 6, 5)
    assert np.array_equal(kept.pixels[2].permute(1, 2, 0).numpy(), ShardReader(samples).image(2))
    assert ResidentImages.of(samples, num_bytes - 1, CPU, 2) is None
    assert ResidentImages.of(noise(tmp_path, (6, 5), (6, 5), (5, 6)), num_bytes, CPU, 2) is None
