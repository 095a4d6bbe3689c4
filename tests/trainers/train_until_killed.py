"""The command that `test_kills` kills: train some methods, one after another, on so many ranks. A signal makes it save."""

import os
import sys
from pathlib import Path

from tests.helpers import on_ranks
from trainers import method_config as configs
from trainers.config import TrainConfig, ViewsConfig, VitConfig
from trainers.samples import SampleList
from trainers.train import train

HEAD = {"prototypes": 24, "hidden_dim": 32, "bottleneck_dim": 16}
METHODS: dict[str, tuple[configs.MethodConfig, str]] = {
    "dino": (configs.DinoConfig(**HEAD, momentum=0.9), "ddp"),
    "dinov2 split over ranks": (configs.Dinov2Config(**HEAD, momentum=0.9), "fsdp"),
    "swav with a queue": (configs.SwavConfig(**HEAD, queue=16, queue_start_epoch=0.5), "ddp"),
    "deepcluster": (configs.DeepClusterConfig(**HEAD, heads=2), "ddp"),
    "moco with a queue": (configs.MocoV2Config(hidden_dim=32, dim=16, queue=24), "fsdp"),
    "npid with a bank": (configs.NpidConfig(dim=16, negatives=8), "ddp"),
    "byol with batch norm": (configs.ByolConfig(hidden_dim=32, dim=16, momentum=0.9), "ddp"),
}
"""One for each kind of thing that has to outlive a kill."""


def config_of(name: str) -> TrainConfig:
    """Twelve steps of a tiny training."""
    method, parallel = METHODS[name]
    masked = isinstance(method, configs.IbotConfig)
    return TrainConfig(
        method=method,
        encoder=VitConfig(image_size=16, patch_size=8, dim=24, depth=2, heads=2, mask_token=masked),
        views=ViewsConfig(num_local=0, global_size=16),
        parallel=parallel,  # type: ignore[arg-type]
        epochs=4,
        global_batch_size=8,
        warmup_epochs=1,
        learning_rate=0.001,
        checkpoint_every=3,
        log_every=1,
    )


def train_all(directory: Path, out: Path) -> None:
    """Train every method, or what is left of it, until `out/stop` is there."""
    samples = SampleList.read(directory / "list.parquet", directory)
    for name in METHODS:
        reports = list(train(config_of(name), samples, out / name, seed=3, stop_file=out / "stop"))
        if reports and not reports[-1].finished:
            return


def _rank(rank: int, directory: Path, out: Path) -> None:
    if rank > 0:
        train_all(directory, out)
        return
    from pipeline.train import signals_make

    with signals_make(out / "stop"):
        (out / "pid").write_text(str(os.getpid()))
        train_all(directory, out)


if __name__ == "__main__":
    directory, out, world_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    on_ranks(_rank, world_size, directory, out)
