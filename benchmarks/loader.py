"""Batches of crops from shards of JPEGs, beside other loaders, on the same images.

`rrc224`: one RandomResizedCrop(224, (0.08, 1)) of an image, uint8. `dino-views`: two crops of 224 and eight of 96 pixels with
the colours of DINO, float32 and normalised. Both from shards whose JPEGs have restart markers, as `windrow shard` writes them;
`rrc224-unmarked` is the first from the files as they are in the tar. Peers decode with Pillow and transform image by image with
torchvision, as their users do. Each has whichever of one, two or three processes is fastest.
`images_per_s` counts after a few batches; `first_batch` is the seconds until one is there.

    python benchmarks/loader.py --images photos.tar
"""

import argparse
import io
import itertools
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

from trainers.data.loader import Loader
from trainers.data.samples import SampleList

NUM_SHARDS, BATCH = 4, 64
WARM_UP = 3
CASES = {"rrc224": 20, "rrc224-unmarked": 20, "dino-views": 4}
"""Batches counted."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Iterator[Any]


def shards_of(images: Path, *, marked: bool) -> list[Path]:
    """WebDataset shards of the JPEGs in a tar, with restart markers or without.

    Made once, as are the samples of other formats beside them.
    """
    if marked:
        from trainers.data.restart_markers import with_restarts
    folder = Path(tempfile.gettempdir()) / f"windrow-loader-{images.stem}-{'marked' if marked else 'unmarked'}"
    if not folder.exists():
        with tarfile.open(images) as tar, tempfile.TemporaryDirectory(dir=folder.parent) as made:
            members = [member for member in tar if member.isfile()]
            for number in range(NUM_SHARDS):
                with tarfile.open(Path(made) / f"{number:05d}.tar", "w", format=tarfile.USTAR_FORMAT) as shard:
                    for index in range(number, len(members), NUM_SHARDS):
                        content = tar.extractfile(members[index]).read()  # type: ignore[union-attr]
                        content = with_restarts(content) if marked else content
                        member = tarfile.TarInfo(f"{index:06d}.jpg")
                        member.size = len(content)
                        shard.addfile(member, io.BytesIO(content))
            Path(made).rename(folder)
            Path(made).mkdir()
    return sorted(folder.glob("*.tar"))


def jpegs(shards: list[Path]) -> Iterator[bytes]:
    """The files in shards."""
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                yield tar.extractfile(member).read()  # type: ignore[union-attr]


def samples_of(shards: list[Path]) -> SampleList:
    """Our list of the files in shards."""
    rows = []
    for shard in shards:
        with tarfile.open(shard) as tar:
            for member in tar:
                crc32 = zlib.crc32(tar.extractfile(member).read())  # type: ignore[union-attr]
                rows.append({"shard": shard.name, "offset": member.offset_data, "size": member.size, "crc32": crc32})
    table = pa.Table.from_pylist([{"row_id": number, **row} for number, row in enumerate(rows)])
    return SampleList.of(table, shards[0].parent)


def windrow(shards: list[Path], case: str, workers: int) -> Batches:
    from trainers.data import views
    from trainers.data.config import ViewsConfig

    config = ViewsConfig(num_local=8)
    if case == "rrc224":
        config = ViewsConfig(num_global=1, num_local=0, global_scale=(0.08, 1))
    loader = Loader(samples_of(shards), config, seed=0, global_batch_size=BATCH, workers=workers)
    for batch in loader.batches(0, 10**6):
        if case == "rrc224":
            yield batch.global_crops
        else:
            groups = [(batch.global_crops, 0), (batch.local_crops, 2)]
            yield [views.colour(config, crops, batch.draws, first, MEAN, STD) for crops, first in groups]


class Transform:
    """What a case asks for, in torchvision, for one image of Pillow's."""

    def __init__(self, case: str) -> None:
        from torchvision import transforms as v1
        from torchvision.transforms import v2

        if case == "rrc224":
            self._views = [v1.Compose([v1.RandomResizedCrop(224, scale=(0.08, 1)), v1.PILToTensor()])]
            return

        def view(size: int, scale: tuple[float, float], blur: float, solarize: float) -> v2.Compose:
            return v2.Compose(
                [
                    v2.PILToTensor(),
                    v2.RandomResizedCrop(size, scale, antialias=True),
                    v2.RandomHorizontalFlip(),
                    v2.ToDtype(torch.float32, scale=True),
                    v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], 0.8),
                    v2.RandomGrayscale(0.2),
                    v2.RandomApply([v2.GaussianBlur(9, (0.1, 2.0))], blur),
                    v2.RandomSolarize(0.5, solarize),
                    v2.Normalize(MEAN, STD),
                ]
            )

        self._views = [view(224, (0.4, 1), 1.0, 0), view(224, (0.4, 1), 0.1, 0.2)] + [view(96, (0.05, 0.4), 0.5, 0)] * 8

    def __call__(self, image: Any) -> list[torch.Tensor]:
        image = image.convert("RGB")
        return [view(image) for view in self._views]

    def of_bytes(self, content: bytes) -> list[torch.Tensor]:
        from PIL import Image

        return self(Image.open(io.BytesIO(content)))


def webdataset(shards: list[Path], case: str, workers: int) -> Batches:
    import webdataset as wds

    urls = [str(shard) for shard in shards] * 4
    data = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).shuffle(200).decode("pil").to_tuple("jpg")
    data = data.map_tuple(Transform(case)).repeat()
    return iter(DataLoader(data, batch_size=BATCH, num_workers=workers))


def mds(shards: list[Path], case: str, workers: int) -> Batches:
    from streaming import MDSWriter, StreamingDataset

    folder = shards[0].parent / "mds"
    if not folder.exists():
        with MDSWriter(out=str(folder), columns={"jpg": "bytes"}) as writer:
            for content in jpegs(shards):
                writer.write({"jpg": content})

    class Images(StreamingDataset):
        transform = Transform(case)

        def __getitem__(self, index: Any) -> list[torch.Tensor]:
            return self.transform.of_bytes(super().__getitem__(index)["jpg"])

    data = Images(local=str(folder), shuffle=True, batch_size=BATCH)
    return itertools.chain.from_iterable(itertools.repeat(DataLoader(data, batch_size=BATCH, num_workers=workers)))


def litdata(shards: list[Path], case: str, workers: int) -> Batches:
    import litdata as lit

    folder = shards[0].parent / "litdata"
    if not folder.exists():
        lit.optimize(fn=_same, inputs=list(jpegs(shards)), output_dir=str(folder), chunk_bytes="64MB", num_workers=1)

    data = lit.StreamingDataset(str(folder), shuffle=True, transform=Transform(case).of_bytes)
    loader = lit.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
    return itertools.chain.from_iterable(itertools.repeat(loader))


def _same(content: bytes) -> bytes:
    return content


def ray_data(shards: list[Path], case: str, _workers: int) -> Batches:
    import logging

    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    transform = Transform(case)

    def images(row: dict[str, Any]) -> dict[str, Any]:
        return {str(number): view.numpy() for number, view in enumerate(transform.of_bytes(row["jpg"]))}

    urls = [str(shard) for shard in shards] * 4
    data = ray.data.read_webdataset(urls, decoder=None, shuffle="files").map(images)
    return iter(data.iter_torch_batches(batch_size=BATCH))


ENGINES: dict[str, Callable[[list[Path], str, int], Batches]] = {
    "windrow": windrow,
    "webdataset": webdataset,
    "mds": mds,
    "litdata": litdata,
    "ray-data": ray_data,
}


def measure(case: str, engine: str, _seed: int, args: argparse.Namespace) -> harness.Row:
    """One engine on one case, once."""
    shards = shards_of(args.images, marked=not case.endswith("-unmarked"))
    case = case.removesuffix("-unmarked")
    best: harness.Row = {"images_per_s": 0.0}
    for workers in (0,) if engine == "ray-data" else (1, 2, 3):
        began = harness.now()
        batches = ENGINES[engine](shards, case, workers)
        next(batches)
        first = harness.now() - began
        for _ in range(WARM_UP - 1):
            next(batches)
        began = harness.now()
        for _ in range(CASES[case]):
            next(batches)
        pace = CASES[case] * BATCH / (harness.now() - began)
        if pace > best["images_per_s"]:
            best = {"images_per_s": pace, "first_batch": first}
    return best


if __name__ == "__main__":
    cases = {case: ["windrow", "webdataset"] if case.endswith("-unmarked") else list(ENGINES) for case in CASES}
    harness.main(
        "loader",
        {"cpu": cases, "gpu": cases},
        measure,
        lambda parser: parser.add_argument("--images", type=Path, required=True, help="a tar of JPEGs"),
    )
