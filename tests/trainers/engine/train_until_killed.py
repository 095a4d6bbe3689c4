"""The command that `test_kills` kills: train some methods, one after another, on so many ranks. A signal makes it save."""

import os
import sys
from pathlib import Path

from tests.helpers import on_ranks

HEAD = {"prototypes": 24, "hidden_dim": 32, "bottleneck_dim": 16}
METHODS = {
    "dinov2 split over ranks": {"type": "dinov2", **HEAD, "momentum": 0.9},
    "swav with a queue": {"type": "swav", **HEAD, "queue": 16, "queue_start_epoch": 0.5},
    "deepcluster": {"type": "deepcluster-v2", **HEAD, "heads": 2},
    "npid with a bank": {"type": "npid", "dim": 16, "negatives": 8},
    "byol with batch norm": {"type": "byol", "hidden_dim": 32, "dim": 16, "momentum": 0.9},
}
"""One for each kind of thing that has to outlive a kill."""
STEPS = 12


def train_all(directory: Path, out: Path) -> None:
    """Train every method, or what is left of it, until `out/stop` is there."""
    from trainers.data.samples import SampleList
    from trainers.engine.config import TrainConfig
    from trainers.engine.train import train

    samples = SampleList.read(directory / "list.parquet", directory)
    for name, method in METHODS.items():
        masks = {"mask_token": method["type"] == "dinov2"}
        settings = {
            "method": method,
            "encoder": {"image_size": 16, "patch_size": 8, "dim": 24, "depth": 2, "heads": 2, "type": "vit"} | masks,
            "views": {"num_local": 0, "global_size": 16},
            "parallel": "fsdp" if "split" in name else "ddp",
            "epochs": STEPS / 3,
            "global_batch_size": 8,
            "warmup_epochs": 1,
            "learning_rate": 0.001,
            "checkpoint_every": 3,
            "log_every": 1,
        }
        config = TrainConfig.model_validate(settings)
        reports = list(train(config, samples, out / name, seed=3, stop_file=out / "stop"))
        if reports and not reports[-1].finished:
            return


def _rank(rank: int, directory: Path, out: Path) -> None:
    if rank > 0:
        train_all(directory, out)
        return
    from pipeline.stages.train import stop_file_on_signal

    with stop_file_on_signal(out / "stop"):
        (out / "pid").write_text(str(os.getpid()))
        train_all(directory, out)


if __name__ == "__main__":
    directory, out, world_size = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    out.mkdir(parents=True, exist_ok=True)
    on_ranks(_rank, world_size, directory, out)
