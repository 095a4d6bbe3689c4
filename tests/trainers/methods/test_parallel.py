"""Every method: one rank, two ranks, split weights and pieces of the batch all make the same steps."""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import on_ranks
from trainers.engine.accumulation import backward
from trainers.engine.parallel import average_gradients, parallelise
from trainers.methods import config as configs
from trainers.methods.build import build_method
from trainers.methods.method import Clock, Method, Views
from trainers.models.batch_norm import synchronise_batch_norm
from trainers.models.config import VitConfig
from trainers.models.encoders import build_backbone
from trainers.ranks import full_state, rank, world_size

SAMPLES, CLASSES = 24, 3
VIT = VitConfig(image_size=16, patch_size=8, dim=24, depth=2, heads=2)
METHODS: list[configs.MethodConfig] = [
    configs.DinoConfig(prototypes=24, hidden_dim=32, bottleneck_dim=16, freeze_prototypes_epochs=0),
    configs.DinoConfig(prototypes=24, hidden_dim=32, bottleneck_dim=16, nested=3, freeze_prototypes_epochs=0),
    configs.IbotConfig(prototypes=24, hidden_dim=32, bottleneck_dim=16, mask_probability=1, freeze_prototypes_epochs=0),
    configs.Dinov2Config(prototypes=24, hidden_dim=32, bottleneck_dim=16, freeze_prototypes_epochs=0),
    configs.Dinov2Config(
        prototypes=24, hidden_dim=32, bottleneck_dim=16, nested=2, targets="centering", freeze_prototypes_epochs=0
    ),
    configs.SwavConfig(
        prototypes=12, hidden_dim=32, bottleneck_dim=16, queue=16, queue_start_epoch=0.5, freeze_prototypes_epochs=0
    ),
    configs.DeepClusterConfig(prototypes=6, hidden_dim=32, bottleneck_dim=16),
    configs.SimclrConfig(hidden_dim=32, dim=16),
    configs.MocoV2Config(hidden_dim=32, dim=16, queue=24),
    configs.MocoV3Config(hidden_dim=32, dim=16),
    configs.ByolConfig(hidden_dim=32, dim=16),
    configs.BarlowTwinsConfig(hidden_dim=32, dim=16),
    configs.VicregConfig(hidden_dim=32, dim=16),
    configs.WmseConfig(hidden_dim=32, dim=3, slice_size=8),
    configs.NpidConfig(dim=16, negatives=8, proximal_weight=0.5),
    configs.SupconConfig(hidden_dim=32, dim=16),
    configs.ClassifyConfig(classes=CLASSES),
]
IDS = [config.type + (" nested" if getattr(config, "nested", 1) > 1 else "") for config in METHODS]


def no_batch_norm(method: Method) -> None:
    """Batch norm sees a piece of the batch at a time; everything else must not depend on pieces."""
    for name, module in list(method.named_modules()):
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and "standardise" not in name:
            parent = method.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], torch.nn.Identity())


def steps(config: configs.MethodConfig, mode: str, pieces: int, norm: bool) -> tuple[list[float], dict[str, Tensor]]:
    """Losses and the weights after three steps of a global batch of eight, on this rank of the process group."""
    torch.manual_seed(0)
    vit = VIT.model_copy(update={"mask_token": True}) if isinstance(config, configs.IbotConfig) else VIT
    method = build_method(config, lambda: build_backbone(vit))
    if not norm:
        no_batch_norm(method)
    method.begin(SAMPLES, 7)
    synchronise_batch_norm(method)
    parallelise(method, mode, torch.device("cpu"))
    trained = [parameter for parameter in method.parameters() if parameter.requires_grad]
    plain = [parameter for parameter in trained if not hasattr(parameter, "to_local")]
    split = [parameter for parameter in trained if hasattr(parameter, "to_local")]
    optimizer = torch.optim.SGD([{"params": group} for group in (plain, split) if group], lr=0.005)

    def views(step: int) -> Views:
        draws = torch.Generator().manual_seed(step)
        rows = slice(rank(), None, world_size())
        crops = [torch.randn(2, 8, 3, 16, 16, generator=draws)[:, rows], torch.randn(2, 8, 3, 8, 8, generator=draws)[:, rows]]
        sample = torch.arange(8)[rows] + 8 * step
        return Views(crops, sample, sample % CLASSES, sample.numpy())

    method.train()
    method.before_first_step(lambda: map(views, range(3)))
    losses = []
    for step in range(3):
        clock = Clock(step, 3, 3)
        output = backward(method, views(step), clock, pieces=pieces, seed=torch.manual_seed, precision=nullcontext)
        average_gradients(method.parameters())
        optimizer.step()
        optimizer.zero_grad()
        method.after_step(clock, torch.ones(()), output.remember)
        loss = output.loss.detach().clone()
        if world_size() > 1:
            torch.distributed.all_reduce(loss)
        losses.append(float(loss) / world_size())
    return losses, full_state(method)


def _compare(rank: int, directory: Path) -> None:
    torch.set_num_threads(1)
    for number, config in enumerate(METHODS):
        for norm in (True, False):
            known = torch.load(directory / f"{number} {norm}.pt", weights_only=True)
            for mode, pieces in (("ddp", 1), ("fsdp", 1)) if norm else (("ddp", 2), ("fsdp", 2)):
                losses, weights = steps(config, mode, pieces, norm)
                where = f"{IDS[number]} {mode} {pieces} {norm}"
                assert np.allclose(losses, known["losses"], rtol=1e-4, atol=1e-5), (where, losses, known["losses"])
                for name, value in known["weights"].items():
                    assert torch.allclose(weights[name].float(), value.float(), rtol=1e-3, atol=2e-5), (where, name)


def test_ranks_split_weights_and_pieces_make_the_same_steps(tmp_path: Path) -> None:
    for number, config in enumerate(METHODS):
        for norm in (True, False):
            losses, weights = steps(config, "ddp", 1, norm)
            torch.save({"losses": losses, "weights": weights}, tmp_path / f"{number} {norm}.pt")
    on_ranks(_compare, 2, tmp_path)


@pytest.mark.parametrize("config", METHODS, ids=IDS)
def test_pieces_of_the_batch_make_the_same_steps(config: configs.MethodConfig) -> None:
    losses, weights = steps(config, "ddp", 1, norm=False)
    again, others = steps(config, "ddp", 4, norm=False)
    assert np.allclose(losses, again, rtol=1e-4, atol=1e-5)
    assert losses[0] != losses[2]
    for name, value in weights.items():
        assert torch.allclose(others[name].float(), value.float(), rtol=1e-3, atol=2e-5), name
