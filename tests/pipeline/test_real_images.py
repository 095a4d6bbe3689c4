"""Real photographs and CIFAR-10, where they lie beside the project."""

import tarfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.artifacts.samples import Samples
from pipeline.splits import HELD_OUT, POOL
from tests.helpers import SHARED_DATA, windrow
from trainers.data.decoding import decode, decode_window
from trainers.data.restart_markers import with_restarts
from trainers.data.shard_reader import ShardReader


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not (SHARED_DATA / name).exists(), reason=f"{SHARED_DATA / name} is not there")


@needs("cifar10.tar.gz")
def test_all_of_cifar10_from_its_archive(tmp_path: Path) -> None:
    done = windrow("shard", str(SHARED_DATA / "cifar10.tar.gz"), f"{tmp_path}/samples")
    assert done.returncode == 0, done.stderr
    found = Samples.open(tmp_path / "samples").statistics
    assert found["files"] == 60_000
    assert set(found["rejected"]) <= {"duplicate"}
    assert found["pool"] + found["held_out"] + sum(found["rejected"].values()) == 60_000
    index = Samples.open(tmp_path / "samples").index(HELD_OUT, ["label", "width"])
    assert set(index["width"].to_pylist()) == {32}
    assert len(set(index["label"].to_pylist())) == 10


@needs("photos1000.tar")
def test_photographs_of_all_sizes(tmp_path: Path) -> None:
    done = windrow("shard", str(SHARED_DATA / "photos1000.tar"), f"{tmp_path}/samples", "samples_per_shard=400")
    assert done.returncode == 0, done.stderr
    found = Samples.open(tmp_path / "samples").statistics
    assert found["pool"] + sum(found["rejected"].values()) == 1000
    assert found["pool"] > 990
    assert len(list((tmp_path / "samples").glob("shard-*.tar"))) == 3
    samples = Samples.open(tmp_path / "samples").sample_list(POOL)
    reader = ShardReader(samples)
    sizes = pq.read_table(tmp_path / "samples" / "index", columns=["width", "height"])
    for index in (0, 401, len(samples) - 1):
        assert reader.image(index).shape[:2] == (sizes["height"][index].as_py(), sizes["width"][index].as_py())
    assert np.unique(sizes["width"].to_numpy()).size > 50


@needs("photos1000.tar")
def test_photographs_have_their_pixels_with_restart_markers_and_in_parts() -> None:
    random = np.random.default_rng(0)
    parts = 0
    with tarfile.open(SHARED_DATA / "photos1000.tar") as tar:
        for member in (member for member in tar if member.isfile()):
            content = tar.extractfile(member).read()
            marked = with_restarts(content)
            whole = decode(content)
            assert np.array_equal(decode(marked), whole)
            height, width = (side // 3 for side in whole.shape[:2])
            top, left = random.integers([2 * height, 2 * width]).tolist()
            found = decode_window(marked, (top, left, height, width), 1)
            here = found.pixels[top - found.top :, left - found.left :][:height, :width]
            assert np.array_equal(here, whole[top : top + height, left : left + width])
            parts += found.pixels.shape != whole.shape
    assert parts > 950
