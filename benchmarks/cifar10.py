"""Every recipe of small/ on CIFAR-10: how well its features classify after its schedule, and how long that takes.

`knn` is the accuracy of a weighted kNN of frozen features on test images, the best of k = 10, 20, 100 and 200; `linear` that of
a linear probe. `pixels`, `untrained` and `untrained-vit` are what there is without training. supcon and classify learn from
clusters of the features that simclr's recipe gives first, whose time counts as theirs.

The preset cpu takes a part of the images, a smaller encoder and minutes; gpu takes the recipes as they are.

    python benchmarks/cifar10.py --images cifar10.tar.gz
"""

import argparse
import sys
import tarfile
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import harness
import numpy as np
from loader import samples_of

from curation.base.device import default_device
from curation.embeddings.source import ArraySource
from curation.kmeans.lloyd import KMeans, KMeansOptions
from launch.config.load import load_run
from launch.config.recipes import recipes
from trainers.data.samples import SampleList
from trainers.engine.config import TrainConfig
from trainers.engine.train import train
from trainers.evaluation.config import EvaluateConfig
from trainers.evaluation.embed import embed, squares
from trainers.evaluation.knn import knn_accuracy
from trainers.evaluation.probes import probe_accuracy
from trainers.models.config import PixelsConfig
from trainers.models.encoders import Encoder, build_encoder

UNTRAINED = {"pixels": None, "untrained": "simclr", "untrained-vit": "ibot"}
METHODS = [name.removeprefix("small/") for name in recipes() if name.startswith("small/")]
CLUSTERS = {"supcon": 200, "classify": 100}
PER_CLASS = {"cpu": {"train": 1000, "test": 200}, "gpu": {"train": 5000, "test": 1000}}
"""Images of each class."""
ON_CPU = ("train.epochs=15", "train.global_batch_size=64", "train.warmup_epochs=1", "train.precision=bf16")
TEACHERS_ON_CPU = {
    **dict.fromkeys(("byol", "moco-v3", "dino"), "train.method.momentum=0.95"),
    **dict.fromkeys(("ibot", "dinov2"), "train.method.momentum=0.9"),
}
"""A short training wants a teacher that follows sooner; where Sinkhorn-Knopp guards from collapse, sooner still."""
SLICES_ON_CPU = {"w-mse": "train.method={dim: 32, slice_size: 64}"}
ENCODERS_ON_CPU = {
    "timm": ("train.encoder={model: resnet10t, small_stem: false}",),
    "vit": ("train.encoder={patch_size: 8, depth: 4}", "train.epochs=40"),
}
"""A Vision Transformer has to learn what a convolution knows of images, which takes longer."""


def images_of(archive: Path, split: str, per_class: int) -> tuple[SampleList, np.ndarray]:
    """The first images of each class of a split, from an archive of <split>/<class>/<number>.jpg, and their classes."""
    tar_path = Path(tempfile.gettempdir()) / f"windrow-{archive.name.split('.')[0]}-{split}-{per_class}.tar"
    if not tar_path.exists():
        unpacked = tar_path.with_suffix(".part")
        with tarfile.open(archive) as tar, tarfile.open(unpacked, "w", format=tarfile.USTAR_FORMAT) as shard:
            for member in tar:
                if member.isfile() and member.name.startswith(f"{split}/") and int(Path(member.name).stem) < per_class:
                    shard.addfile(member, tar.extractfile(member))
        unpacked.rename(tar_path)
    with tarfile.open(tar_path) as tar:
        _, labels = np.unique([Path(member.name).parent.name for member in tar], return_inverse=True)
    return samples_of([tar_path]), labels


def recipe(name: str, preset: str) -> TrainConfig:
    """How a method is trained."""
    words = ["source.path=."]
    if preset == "cpu":
        words += [*ON_CPU, *ENCODERS_ON_CPU[load_run(f"small/{name}").train.encoder.type]]
        words += [table[name] for table in (TEACHERS_ON_CPU, SLICES_ON_CPU) if name in table]
    return load_run(f"small/{name}", words).train


def trained(config: TrainConfig, samples: SampleList, seed: int) -> Encoder:
    """The encoder after its schedule."""
    device = default_device()
    with tempfile.TemporaryDirectory() as out:
        for at in train(config, samples, Path(out), seed=seed, device=device):
            progress = f"step {at.step:,} of {at.total_steps:,}, {at.images_per_second:,.0f} images/s, loss {at.loss:.3f}"
            print(f"\r  {progress}", end="" if at.step < at.total_steps else "\n", file=sys.stderr, flush=True)
        return Encoder.load(Path(out))


def clustered(samples: SampleList, features: np.ndarray, num_clusters: int, seed: int) -> SampleList:
    """The samples with the clusters of their `features` as labels."""
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    clustering = KMeans(ArraySource(units), num_clusters, rng_key=seed, options=KMeansOptions(spherical=True)).run()
    return replace(samples, label=clustering.local_assignment.astype(np.int64))


def measure(case: str, _engine: str, seed: int, args: argparse.Namespace) -> harness.Row:
    """Train one recipe and evaluate it."""
    (samples, labels), (tests, truth) = (images_of(args.images, split, num) for split, num in PER_CLASS[args.preset].items())
    features = partial(embed, device=default_device())
    every = np.arange(len(samples))
    began = harness.now()
    if case == "pixels":
        encoder = build_encoder(PixelsConfig(image_size=32, dim=512), squares(samples, every[:: len(every) // 2000], 32))
    elif case in UNTRAINED:
        encoder = build_encoder(recipe(str(UNTRAINED[case]), args.preset).encoder, np.empty(0))
    else:
        if case in CLUSTERS:
            first = trained(recipe("simclr", args.preset), samples, seed)
            samples = clustered(samples, features(first, samples, every), CLUSTERS[case], seed)
        encoder = trained(recipe(case, args.preset), samples, seed)
    seconds = harness.now() - began
    bank, queries = features(encoder, samples, every), features(encoder, tests, np.arange(len(tests)))
    found = knn_accuracy(bank, labels, queries, truth, EvaluateConfig(), device=default_device())
    found |= probe_accuracy(bank, labels, queries, truth, rng_key=seed, device=default_device())
    row = {"knn": found["knn"], "linear": found["linear"]}
    return row if case in UNTRAINED else {**row, "seconds": seconds}


if __name__ == "__main__":
    cases = {case: ["windrow"] for case in (*UNTRAINED, *sorted(METHODS))}
    harness.main(
        "cifar10",
        {"cpu": cases, "gpu": cases},
        measure,
        lambda parser: parser.add_argument(
            "--images", type=Path, required=True, help="an archive <split>/<class>/<number>.jpg"
        ),
    )
