import json
import pickle
import resource
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from curation.base.errors import DataError
from tests.helpers import on_ranks
from tests.trainers.data.test_loader import shards
from trainers.data.config import ViewsConfig
from trainers.data.loader import Loader
from trainers.data.samples import SampleList
from trainers.engine.config import StageConfig, TrainConfig
from trainers.engine.step import Engine, StepResult
from trainers.engine.train import train
from trainers.evaluation.embed import squares
from trainers.methods.config import DinoConfig, SwavConfig
from trainers.methods.method import Clock, Views
from trainers.models.config import TimmConfig, VitConfig
from trainers.models.encoders import Encoder
from trainers.output_files import CHECKPOINTS, METRICS, STATE, newest_checkpoint

VIEWS = ViewsConfig(num_local=2, global_size=16, local_size=8)
VIT = VitConfig(image_size=16, patch_size=8, dim=24, depth=2, heads=2)
DINO = DinoConfig(prototypes=24, hidden_dim=32, bottleneck_dim=16, momentum=0.9)
SWAV = SwavConfig(prototypes=12, hidden_dim=32, bottleneck_dim=16)
CONFIG = TrainConfig(
    method=DINO,
    encoder=VIT,
    views=VIEWS,
    epochs=8,
    global_batch_size=8,
    warmup_epochs=1,
    learning_rate=0.02,
    checkpoint_every=4,
    log_every=2,
)


def losses(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    return [row["loss"] for row in rows]


def go(config: TrainConfig, samples: SampleList, out: Path, *, stop_after: int | None = None) -> None:
    for progress in train(config, samples, out, seed=3):
        if progress.step == stop_after:
            return


def test_a_start_from_something_else_is_refused(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    go(CONFIG, samples, tmp_path / "first", stop_after=4)
    start = newest_checkpoint(tmp_path / "first" / CHECKPOINTS)
    other = CONFIG.model_copy(update={"method": SWAV})
    with pytest.raises(DataError, match="another method or encoder"):
        next(iter(train(other, samples, tmp_path / "second", seed=3, init_from=start)))
    next(iter(train(CONFIG, samples, tmp_path / "third", seed=3, init_from=start)))


@pytest.mark.parametrize(
    ("method", "encoder"), [(DINO, VIT), (SWAV, VIT), (DINO, TimmConfig(model="test_resnet", image_size=16))]
)
def test_a_short_training_learns_and_leaves_an_encoder(
    tmp_path: Path, method: DinoConfig | SwavConfig, encoder: VitConfig | TimmConfig
) -> None:
    samples = shards(tmp_path, num=24)
    plain = VIEWS.model_copy(update={"jitter": 0.0, "grayscale": 0.0, "blur": (0.0, 0.0, 0.0), "solarize": (0.0, 0.0, 0.0)})
    config = CONFIG.model_copy(update={"method": method, "encoder": encoder, "epochs": 20.0, "views": plain})
    go(config, samples, tmp_path / "out")
    curve = losses(tmp_path / "out")
    assert len(curve) == 60
    assert min(curve[20:]) < max(curve[:20]) - 0.3
    features = Encoder.load(tmp_path / "out")(torch.from_numpy(squares(samples, np.arange(24), 16)))
    assert features.isfinite().all()
    assert features.std(0).mean() > 1e-4


def test_bf16_with_every_augmentation_stays_close_to_fp32(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    blurred = VIEWS.model_copy(update={"blur": (1.0, 1.0, 1.0), "solarize": (0.5, 0.5, 0.5)})
    for precision in ("fp32", "bf16"):
        config = CONFIG.model_copy(update={"precision": precision, "epochs": 1.0, "views": blurred})
        go(config, samples, tmp_path / precision)
    assert np.abs(np.subtract(losses(tmp_path / "fp32"), losses(tmp_path / "bf16"))).max() < 0.1


def test_a_resumed_training_is_bit_equal(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    for method in (DINO, SWAV):
        config = CONFIG.model_copy(update={"method": method})
        whole, parts = tmp_path / f"whole {method.type}", tmp_path / f"parts {method.type}"
        go(config, samples, whole)
        go(config, samples, parts, stop_after=10)  # two steps past the checkpoint of step 8
        go(config, samples, parts)
        assert (whole / METRICS).read_bytes() == (parts / METRICS).read_bytes()
        files = [path.relative_to(whole) for path in whole.rglob("*.*") if path.is_file()]
        assert len(files) == 7  # two checkpoints of two files, the encoder's two, the metrics
        for name in files:
            assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_a_compiled_training_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    samples = shards(tmp_path, num=24)
    config = CONFIG.model_copy(update={"compile": True, "checkpoint_activations": True})
    go(config, samples, tmp_path / "whole")
    go(config, samples, tmp_path / "parts", stop_after=10)
    go(config, samples, tmp_path / "parts")
    for name in (METRICS, "encoder.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    go(CONFIG, samples, tmp_path / "parts")  # finished, so that this only reads the checkpoint


def test_stages_change_sizes_alone_and_resume_inside_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = shards(tmp_path, num=24)
    stages = (StageConfig(begins=0.5, global_size=32), StageConfig(begins=0.75, global_size=48, local_size=24))
    seen: list[tuple[int, ...]] = []
    stepped = Engine.step

    def watched(self: Engine, views: Views, clock: Clock) -> StepResult:
        seen.append((clock.step, *(crops.shape[-1] for crops in views.crops)))
        return stepped(self, views, clock)

    monkeypatch.setattr(Engine, "step", watched)
    config = CONFIG.model_copy(update={"stages": stages})
    whole, parts, plain = tmp_path / "whole", tmp_path / "parts", tmp_path / "plain"
    go(config, samples, whole)
    sizes = [(16, 8)] * 12 + [(32, 8)] * 6 + [(48, 24)] * 6
    assert seen == [(step, *size) for step, size in enumerate(sizes)]
    for stop in (10, 14, 20):  # two steps past a checkpoint, which lies before, at the beginning of, and in a stage
        go(config, samples, parts, stop_after=stop)
    go(config, samples, parts)
    for name in (METRICS, "encoder.safetensors"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()
    go(CONFIG, samples, plain)
    assert losses(plain)[:12] == losses(whole)[:12]
    rates = [[json.loads(line)["learning_rate"] for line in (out / METRICS).read_text().splitlines()] for out in (whole, plain)]
    assert rates[0] == rates[1]


def test_stages_that_fit_neither_the_encoder_nor_each_other_are_refused() -> None:
    for stages, message in (
        ([{"begins": 0.5, "global_size": 20}], r"stages\[0\]\.global_size 20 must be a multiple of encoder\.patch_size 8"),
        ([{"begins": 0.5, "global_size": 24}, {"begins": 0.4, "global_size": 32}], "stages follow one another"),
    ):
        with pytest.raises(ValidationError, match=message):
            TrainConfig.model_validate({**CONFIG.model_dump(), "stages": stages})


def _record_order(rank: int, directory: Path, world_size: int, first: int) -> None:
    """Keep which samples this rank sees from step `first` on."""
    samples = SampleList.read(directory / "list.parquet", directory)
    loader = Loader(samples, VIEWS, seed=3, global_batch_size=8, rank=rank, world_size=world_size, max_resident_bytes=2**20)
    order = np.stack([batch.row_id for batch in loader.batches(first, 16)])
    np.save(directory / f"order-{world_size}-{rank}.npy", order)


def _continue(rank: int, directory: Path, world_size: int) -> None:
    samples = SampleList.read(directory / "list.parquet", directory)
    for method in (DINO, SWAV):
        out = directory / f"{method.type} on {world_size}"
        go(CONFIG.model_copy(update={"method": method}), samples, out)
    _record_order(rank, directory, world_size, 8)


def test_resumed_on_one_two_and_four_ranks_it_is_the_same_run(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    for method in (DINO, SWAV):
        begun = tmp_path / method.type
        go(CONFIG.model_copy(update={"method": method}), samples, begun, stop_after=8)
        for world_size in (1, 2, 4):
            shutil.copytree(begun, tmp_path / f"{method.type} on {world_size}")
    orders = []
    for world_size in (1, 2, 4):
        on_ranks(_continue, world_size, tmp_path, world_size)
        ranks = [np.load(tmp_path / f"order-{world_size}-{rank}.npy") for rank in range(world_size)]
        orders.append(np.stack(ranks, axis=2).reshape(16, 8).tolist())
    assert orders[0] == orders[1] == orders[2]
    for method in (DINO, SWAV):
        alone, *others = (losses(tmp_path / f"{method.type} on {world_size}") for world_size in (1, 2, 4))
        assert len(alone) == 24
        for curve in others:
            assert np.abs(np.subtract(curve, alone)).max() < 1e-4


def _stop_and_continue(_: int, directory: Path) -> None:
    samples = SampleList.read(directory / "list.parquet", directory)
    go(CONFIG, samples, directory / "whole")
    out, stop = directory / "stopped", directory / "stop"
    steps = []
    for progress in train(
        CONFIG.model_copy(update={"log_every": 1, "checkpoint_every": 100}), samples, out, seed=3, stop_file=stop
    ):
        steps.append(progress.step)
        if progress.step == 9:
            stop.touch()
    assert steps[-1] <= 11
    assert not progress.finished
    assert newest_checkpoint(out / CHECKPOINTS) == out / CHECKPOINTS / f"step-{steps[-1]:08d}"
    assert not (out / "encoder.safetensors").exists()
    go(CONFIG, samples, out)


def test_stopped_from_outside_all_ranks_save_and_continue_to_the_same_bits(tmp_path: Path) -> None:
    shards(tmp_path, num=24)
    on_ranks(_stop_and_continue, 2, tmp_path)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    for name in (
        "encoder.safetensors",
        *(f"checkpoints/step-00000024/shard-0000{rank}-model-00001-of-00001.safetensors" for rank in (1, 2)),
    ):
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_bad_steps_change_nothing_and_a_run_of_them_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = shards(tmp_path, num=24)
    seen: list[list[int]] = []
    stepped = Engine.step

    def poisoned(self: Engine, views: Views, clock: Clock) -> StepResult:
        step = int(views.position[0]) // 8
        seen.append([clock.step, step])
        if step in (2, 9, 10, 11):  # one by itself, and three that follow the checkpoint of step 8
            views.crops[0][0, 0] = torch.nan
        return stepped(self, views, clock)

    monkeypatch.setattr(Engine, "step", poisoned)
    config = CONFIG.model_copy(update={"checkpoint_every": 1, "log_every": 1})
    go(config.model_copy(update={"checkpoint_every": 2}), samples, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out" / METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 25))
    assert [row["step"] for row in rows if row["loss"] is None] == [3, 10]
    steps = [step for _, step in seen]
    assert steps[:12] == list(range(12))
    back = steps[12:]
    assert back == list(range(12, 12 + len(back)))  # what led there is not shown again
    assert seen[-1][0] == 23
    state = saved(tmp_path / "out")
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    wild = CONFIG.model_copy(update={"learning_rate": 1e30, "warmup_epochs": 0.0, "clip_gradient": 1e30})
    with pytest.raises(DataError, match=r"Lower train\.learning_rate"):
        go(wild, samples, tmp_path / "out")


def saved(out: Path) -> dict[str, torch.Tensor]:
    path = newest_checkpoint(out / CHECKPOINTS)
    assert path is not None
    return load_file(next(path.glob("*.safetensors")))


def test_frozen_prototypes_do_not_move(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    frozen = CONFIG.model_copy(update={"method": DINO.model_copy(update={"freeze_prototypes_epochs": 4 / 3})})
    go(frozen, samples, tmp_path / "out", stop_after=4)
    early = saved(tmp_path / "out")
    go(frozen, samples, tmp_path / "out", stop_after=8)
    late = saved(tmp_path / "out")
    name = "method.prototypes.0.weight"
    assert not torch.equal(early[name], late[name])
    go(frozen.model_copy(update={"checkpoint_every": 1}), samples, tmp_path / "first", stop_after=2)
    assert torch.equal(early[name], saved(tmp_path / "first")[name])


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    go(CONFIG, samples, tmp_path / "out", stop_after=4)
    newest = newest_checkpoint(tmp_path / "out" / CHECKPOINTS)
    assert newest is not None
    file = next(newest.glob("*.safetensors"))
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"\x80\x04" + whole[2:], pickle.dumps({"step": 1})):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot be read.*Delete it"):
            go(CONFIG, samples, tmp_path / "out")


def test_only_the_newest_checkpoints_are_kept_and_no_half_one_counts(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    half = tmp_path / "out" / CHECKPOINTS / ".step-00000099"
    half.mkdir(parents=True)
    go(CONFIG, samples, tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out" / CHECKPOINTS).iterdir())
    assert names == ["step-00000020", "step-00000024"]
    (tmp_path / "out" / CHECKPOINTS / names[1] / STATE).unlink()
    newest = newest_checkpoint(tmp_path / "out" / CHECKPOINTS)
    assert newest is not None
    assert newest.name == names[0]


def test_a_checkpoint_that_cannot_be_written_stops_with_a_sentence_and_keeps_the_last(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    go(CONFIG, samples, tmp_path / "out", stop_after=4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # of any file, as a disk that is almost full
    try:
        with pytest.raises(DataError, match=r"step 8 could not be written.*Make room"):
            go(CONFIG, samples, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    newest = newest_checkpoint(tmp_path / "out" / CHECKPOINTS)
    assert newest is not None
    assert newest.name == "step-00000004"
    go(CONFIG, samples, tmp_path / "out")
    assert len(losses(tmp_path / "out")) == 24
