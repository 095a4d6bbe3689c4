"""A step is the same compiled or not, with activations kept or not, and wherever the weights are; and nobody waits in it."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from curation.base.errors import ConfigError
from tests.helpers import on_ranks
from tests.trainers.methods.test_parallel import CLASSES, IDS, METHODS, SAMPLES, VIT
from trainers.data.config import ViewsConfig
from trainers.engine import step as engines
from trainers.engine.config import LarsConfig, TrainConfig
from trainers.engine.step import Engine
from trainers.methods import config as configs
from trainers.methods.method import Clock, Views
from trainers.models.config import TimmConfig, VitConfig
from trainers.ranks import full_state, rank, world_size

DINO, DINOV2 = METHODS[0], METHODS[3]
DROPPING = VIT.model_copy(update={"depth": 3, "drop_path": 0.4, "mask_token": True})
MASKED = VIT.model_copy(update={"mask_token": True})
RESNET = TimmConfig(model="test_resnet", image_size=32)


def config(method: configs.MethodConfig = DINO, encoder: VitConfig | TimmConfig = VIT, **changes: object) -> TrainConfig:
    views = ViewsConfig(global_size=16, local_size=8)
    made = TrainConfig(method=method, encoder=encoder, views=views, global_batch_size=8, label="level_1", warmup_epochs=0)
    return made.model_copy(update={"learning_rate": 0.01, **changes})


def crops_of(step: int, size: int = 16) -> Views:
    """This rank's share of eight samples."""
    draws = torch.Generator().manual_seed(step)
    mine = slice(rank(), None, world_size())
    crops = [torch.randn(2, 8, 3, side, side, generator=draws)[:, mine] for side in (size, size // 2)]
    sample = torch.arange(8)[mine] + 8 * step
    return Views(crops, sample, sample % CLASSES, sample.numpy())


def train(config: TrainConfig, size: int = 16) -> tuple[list[float], dict[str, Tensor]]:
    """Losses of all ranks and the weights after three steps."""
    engine = Engine(config, SAMPLES, seed=3, device=torch.device("cpu"))
    engine.method.train()
    engine.method.before_first_step(lambda: (crops_of(step, size) for step in range(3)))
    losses = []
    for step in range(3):
        done = engine.step(crops_of(step, size), Clock(step, 3, 3))
        assert done.good
        loss = done.loss.clone()
        if world_size() > 1:
            torch.distributed.all_reduce(loss)
        losses.append(float(loss) / world_size())
    return losses, full_state(engine.method)


def assert_same(found: tuple[list[float], dict[str, Tensor]], expected: tuple[list[float], dict[str, Tensor]]) -> None:
    assert np.allclose(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        if not name.endswith("num_batches_tracked"):  # which nobody reads
            assert torch.allclose(found[1][name].float(), value.float(), rtol=1e-3, atol=2e-5), name


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> CompileCounterWithBackend:
    """Counts graphs that are compiled; by a backend that costs no time."""
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    return counter


@pytest.mark.parametrize(
    ("method", "encoder", "number"),
    [
        (DINO, VIT, 2),  # student and teacher
        (DINOV2, DROPPING, 4),  # a student's block without drop path and two with, and the teacher's
        (DINO, RESNET, 3),  # two resolutions, and the teacher
    ],
)
def test_compiled_steps_are_the_same(
    graphs: CompileCounterWithBackend, method: configs.MethodConfig, encoder: VitConfig | TimmConfig, number: int
) -> None:
    size = 64 if encoder is RESNET else 16
    kept = train(config(method, encoder), size)
    assert graphs.frame_count == 0
    assert_same(train(config(method, encoder, compile=True), size), kept)
    assert graphs.frame_count == number


def test_compiled_steps_with_parts_and_recomputed_activations_are_the_same(graphs: CompileCounterWithBackend) -> None:
    expected = train(config(DINOV2, DROPPING, accumulation=2))
    found = train(config(DINOV2, DROPPING, accumulation=2, compile=True, checkpoint_activations=True))
    assert_same(found, expected)
    assert graphs.frame_count > 0


def test_recomputed_activations_are_not_kept_and_change_nothing() -> None:
    for encoder in (DROPPING, RESNET):
        size = 64 if encoder is RESNET else 16
        assert_same(train(config(DINO, encoder, checkpoint_activations=True), size), train(config(DINO, encoder), size))
        sizes = []
        for recomputes in (False, True):
            engine = Engine(config(DINO, encoder, checkpoint_activations=recomputes), 8, seed=0, device=torch.device("cpu"))
            engine.method.train()
            kept: list[int] = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):  # type: ignore[func-returns-value]
                engine.method.student(crops_of(0, size).crops)
            sizes.append(sum(kept))
        assert sizes[1] < 0.7 * sizes[0]


def test_an_encoder_that_cannot_recompute_is_refused() -> None:
    with pytest.raises(ConfigError, match="checkpoint_activations=false"):
        Engine(
            config(encoder=TimmConfig(model="inception_v4", image_size=32), checkpoint_activations=True),
            8,
            seed=0,
            device=torch.device("cpu"),
        )


def _on_a_rank(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    whole = engines.parallelise

    def watched(method: torch.nn.Module, *args: Any, **options: Any) -> None:
        assert {parameter.device.type for parameter in method.parameters()} == {"meta" if rank else "cpu"}
        whole(method, *args, **options)

    engines.parallelise = watched  # type: ignore[assignment]
    for name, changes in PLACES.items():
        method = DINOV2 if changes.get("compile") else DINO
        expected = torch.load(directory / f"{name}.pt", weights_only=True)
        found = train(config(method, MASKED, **changes))
        if changes.get("precision") == "bf16":
            assert np.allclose(found[0], expected[0], rtol=0.005), (found[0], expected[0])
        else:
            assert_same(found, expected)
    engines.parallelise = whole
    expected = torch.load(directory / "resnet.pt", weights_only=True)
    assert_same(train(config(DINO, RESNET), 64), expected)
    with pytest.raises(ConfigError, match="nothing to compile"):
        train(config(DINO, RESNET, compile=True), 64)


PLACES: dict[str, dict[str, object]] = {
    "ddp": {"parallel": "ddp"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp in bf16": {"parallel": "fsdp", "precision": "bf16"},
    "everything": {"parallel": "fsdp", "compile": True, "checkpoint_activations": True, "accumulation": 2},
}


def test_on_ranks_the_weights_begin_as_one_rank_makes_them(tmp_path: Path) -> None:
    for name, changes in PLACES.items():
        method = DINOV2 if changes.get("compile") else DINO
        alone = {"precision": changes.get("precision", "fp32")}
        torch.save(train(config(method, MASKED, **alone)), tmp_path / f"{name}.pt")
    torch.save(train(config(DINO, RESNET), 64), tmp_path / "resnet.pt")
    on_ranks(_on_a_rank, 2, tmp_path)


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        chosen = args[1] if name in ("index", "index_put", "index_put_") else []
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "equal", "linalg_cholesky", "_unique2") or any(
            index is not None and index.dtype == torch.bool for index in chosen
        ):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", METHODS, ids=IDS)
def test_nobody_waits_for_the_device_in_a_step(method: configs.MethodConfig) -> None:
    encoder = DROPPING if isinstance(method, configs.IbotConfig) else VIT
    made = config(method, encoder, optimizer=LarsConfig()) if method.type == "swav" else config(method, encoder)
    engine = Engine(made, SAMPLES, seed=3, device=torch.device("cpu"))
    engine.method.train()
    engine.method.before_first_step(lambda: (crops_of(step) for step in range(3)))
    for step in range(2):
        with Waits() as waits:
            engine.step(crops_of(step), Clock(step, 3, 3))
        assert not waits.found
