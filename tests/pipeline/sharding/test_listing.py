from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.artifacts.manifest import Part
from pipeline.sharding.listing import list_partition, thin
from pipeline.sources.config import ImagesConfig
from pipeline.sources.folder import Folder
from pipeline.splits import HELD_OUT, POOL
from tests.helpers import write_images


def listing(source: Folder, scratch: Path) -> list[Part]:
    partitions = enumerate(source.partitions())
    return [part for number, partition in partitions for part in list_partition(number, partition, source, scratch)]


def table(parts: list[Part], scratch: Path) -> pa.Table:
    return pa.concat_tables(pq.read_table(scratch / part.path) for part in parts)


def test_a_listing_is_in_the_order_of_keys_and_always_the_same(tmp_path: Path) -> None:
    source = Folder(ImagesConfig(path=write_images(tmp_path / "source", 120)))
    parts = listing(source, tmp_path)
    for part in parts:
        keys = pq.read_table(tmp_path / part.path)["key"].to_pylist()
        assert keys == sorted(keys)
        assert len(keys) == part.num_rows
    again = tmp_path / "again"
    again.mkdir()
    assert listing(source, again) == parts


def test_thinning_spares_the_held_out_and_is_always_the_same(tmp_path: Path) -> None:
    parts = listing(Folder(ImagesConfig(path=write_images(tmp_path / "source", 120))), tmp_path)
    (tmp_path / "again").mkdir()
    for part in parts:
        (tmp_path / "again" / part.path).write_bytes((tmp_path / part.path).read_bytes())
    thinned = thin(parts, 5, tmp_path)
    assert thin(parts, 5, tmp_path / "again") == thinned
    before, after = table(parts, tmp_path).to_pylist(), table(thinned, tmp_path).to_pylist()
    assert [row for row in after if row["split"] == HELD_OUT] == [row for row in before if row["split"] == HELD_OUT]
    sizes = [sum(row["split"] == POOL and row["label"] == f"class {label}" for row in after) for label in range(3)]
    assert sizes == [30, 10, 6]
