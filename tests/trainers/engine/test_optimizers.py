import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from curation.base.errors import ConfigError
from tests.helpers import on_ranks
from trainers.engine.config import AdamWConfig, LarsConfig, SgdConfig, TrainConfig
from trainers.engine.optimizers import build_optimizer, parameter_groups, set_rates, skip_if
from trainers.methods.method import Method, StepOutput
from trainers.models.config import TimmConfig, VitConfig
from trainers.models.encoders import build_backbone
from trainers.models.heads import NestedPrototypes, Network, dino_projector

CONFIGS = {
    "adamw": AdamWConfig(betas=(0.8, 0.95)),
    "sgd": SgdConfig(),
    "nesterov": SgdConfig(momentum=0.7, nesterov=True),
    "lars": LarsConfig(trust_coefficient=0.02),
}
RATE, DECAY = 0.05, 0.1
by_name = pytest.mark.parametrize("name", CONFIGS)


class Lossless(Method):
    def loss(self, *_: object) -> StepOutput:
        raise AssertionError("these tests bring gradients of their own")


def method_of(backbone: nn.Module, dim: int) -> Method:
    method = Lossless()
    backbone.num_features = dim  # type: ignore[assignment]
    method.student = Network(backbone, dino_projector(dim, 12, 6))
    method.prototypes = NestedPrototypes(6, 10, 1)
    return method


def student(depth: int = 2) -> Method:
    torch.manual_seed(0)
    backbone = build_backbone(VitConfig(image_size=16, patch_size=8, dim=8, depth=depth, heads=2))
    return method_of(backbone, 8)


def optimizer_of(model: Method, name: str, **settings: float) -> torch.optim.Optimizer:
    optimizer = build_optimizer(model, TrainConfig(optimizer=CONFIGS[name], **settings))  # type: ignore[arg-type]
    set_rates(optimizer, RATE, DECAY)
    return optimizer


def fill_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=generator)


def literal_step(name: str, w: Tensor, g: Tensor, state: dict[str, Any], matrix: bool) -> Tensor:
    """The update rules as the papers write them, in float64; `state` holds what they remember."""
    w, g = w.double(), g.double()
    config = CONFIGS[name]
    decay = DECAY if matrix else 0.0
    if isinstance(config, AdamWConfig):  # Loshchilov and Hutter 2019, algorithm 2
        b1, b2 = config.betas
        t = state["t"] = state.get("t", 0) + 1
        state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
        state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
        return w - RATE * (state["m"] / (1 - b1**t) / ((state["v"] / (1 - b2**t)).sqrt() + 1e-8) + decay * w)
    ratio = 1.0
    if isinstance(config, LarsConfig) and matrix and w.norm() > 0 and g.norm() > 0:  # You et al. 2017, equation 6
        ratio = config.trust_coefficient * float(w.norm() / (g.norm() + decay * w.norm()))
    g = ratio * (g + decay * w)
    state["v"] = config.momentum * state.get("v", 0) + g
    if isinstance(config, SgdConfig) and config.nesterov:
        return w - RATE * (g + config.momentum * state["v"])
    return w - RATE * state["v"]


@by_name
def test_three_steps_equal_the_formulas(name: str) -> None:
    model = student()
    with torch.no_grad():
        model.student.projector[2].weight.zero_()  # a matrix without a norm, whose ratio would be 0 for ever
    optimizer = optimizer_of(model, name)
    state: dict[str, dict[str, Any]] = {key: {} for key, _ in model.named_parameters()}
    for step in range(3):
        fill_gradients(model, step)
        expected = {
            key: literal_step(name, p.detach(), p.grad, state[key], p.ndim > 1 and key.endswith("weight"))
            for key, p in model.named_parameters()
        }
        optimizer.step()
        for key, p in model.named_parameters():
            assert torch.allclose(p.double(), expected[key], rtol=1e-4, atol=1e-6), (key, step)


@by_name
@pytest.mark.parametrize("first", [True, False])
def test_a_marked_step_changes_nothing_and_later_ones_are_as_if_it_had_not_been(name: str, first: bool) -> None:
    model, twin = student(), student()
    optimizer, other = optimizer_of(model, name), optimizer_of(twin, name)
    if not first:
        for each, its in ((model, optimizer), (twin, other)):
            fill_gradients(each, 0)
            its.step()
    before = copy.deepcopy([model.state_dict(), optimizer.state_dict()["state"]])
    fill_gradients(model, 1)
    for p in model.parameters():
        p.grad[0] = torch.nan  # type: ignore[index]
    skip_if(optimizer, torch.tensor(True))
    optimizer.step()
    after = [model.state_dict(), optimizer.state_dict()["state"]]
    assert all(torch.equal(old, after[0][key]) for key, old in before[0].items())
    for key, old in before[1].items():
        assert all(torch.equal(value, after[1][key][what]) for what, value in old.items())
    for each, its in ((model, optimizer), (twin, other)):
        skip_if(its, torch.tensor(False))
        fill_gradients(each, 2)
        its.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@by_name
def test_a_grad_scaler_divides_gradients_and_skips_overflow(name: str) -> None:
    model, twin = student(), student()
    optimizer, other = optimizer_of(model, name), optimizer_of(twin, name)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step, factor in enumerate((1.0, torch.inf, 1.0)):
        fill_gradients(model, step)
        scaler.scale(torch.zeros(()))  # creates the scale
        for p in model.parameters():
            p.grad *= scaler.get_scale() * factor  # type: ignore[operator]
        scaler.step(optimizer)
        scaler.update()
        if factor == 1.0:
            fill_gradients(twin, step)
            other.step()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def _sharded(rank: int) -> None:
    for name in CONFIGS:
        _sharded_equals_alone(rank, name)


def _sharded_equals_alone(rank: int, name: str) -> None:
    alone, model = student(), student()
    for block in model.student.backbone.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer, other = optimizer_of(model, name, layer_decay=0.5), optimizer_of(alone, name, layer_decay=0.5)
    for step in range(4):
        fill_gradients(alone, step)
        for p, q in zip(model.parameters(), alone.parameters(), strict=True):
            p.grad = distribute_tensor(q.grad, p.device_mesh, p.placements)  # type: ignore[arg-type]
        for its in (optimizer, other):
            skip_if(its, torch.tensor(step == 2))
            its.step()
    for (key, p), q in zip(model.named_parameters(), alone.parameters(), strict=True):
        assert isinstance(p, DTensor)
        assert torch.allclose(p.full_tensor(), q, rtol=1e-5, atol=1e-6), (rank, name, key)


def test_sharded_over_two_ranks_it_is_the_optimizer_of_one_process() -> None:
    on_ranks(_sharded, 2)


def scales(model: Method, **settings: float) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = parameter_groups(model, **settings)
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    return {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}


def test_rates_fall_layer_by_layer_below_the_head() -> None:
    found = scales(student(depth=3), layer_decay=0.5, patch_embed_rate=0.2)
    assert found["student.projector.0.weight"] == found["prototypes.0.weight"] == found["student.backbone.norm.bias"] == 1
    assert [found[f"student.backbone.blocks.{i}.attn.qkv.weight"] for i in range(3)] == [1 / 8, 1 / 4, 1 / 2]
    assert found["student.backbone.cls_token"] == found["student.backbone.pos_embed"] == 1 / 16
    assert found["student.backbone.patch_embed.proj.weight"] == pytest.approx(0.2 / 16)

    resnet = method_of(build_backbone(TimmConfig(model="resnet18")), 512)
    found = scales(resnet, layer_decay=0.5)
    assert found["student.projector.0.weight"] == 1
    assert found["student.backbone.layer4.1.conv2.weight"] == 1 / 2
    assert found["student.backbone.layer1.0.bn1.weight"] == found["student.backbone.layer1.0.conv1.weight"] == 1 / 2**8
    assert found["student.backbone.conv1.weight"] == found["student.backbone.bn1.bias"] == 1 / 2**9
    assert set(scales(resnet).values()) == {1.0}


def test_unknown_layers_are_named_and_not_guessed() -> None:
    class Plain(nn.Sequential):
        pass

    plain = method_of(Plain(nn.Linear(4, 8)), 8)
    assert set(scales(plain).values()) == {1.0}
    with pytest.raises(ConfigError, match=r"layer_decay.*Plain"):
        parameter_groups(plain, layer_decay=0.9)
    with pytest.raises(ConfigError, match=r"patch_embed_rate is 0\.2.*Plain"):
        parameter_groups(plain, patch_embed_rate=0.2)


def _decaying(model: Method) -> Iterator[str]:
    names = {id(p): name for name, p in model.named_parameters()}
    for group in parameter_groups(model):
        yield from (names[id(p)] for p in group["params"] if group["decays"])


def test_only_matrices_decay_and_prototypes_stand_alone() -> None:
    timm_vit = build_backbone(TimmConfig(model="vit_small_patch14_reg4_dinov2", image_size=28))  # tokens, LayerScale
    for model in (student(), method_of(timm_vit, 384)):
        linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
        assert set(_decaying(model)) == linear | {"prototypes.0.weight"}
        optimizer = build_optimizer(model, TrainConfig())
        assert len(optimizer.param_groups) == 3
        set_rates(optimizer, 0.5, 0.1, prototypes_frozen=True)
        found = {(g["prototypes"], g["decays"]): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
        assert found == {(False, True): (0.5, 0.1), (False, False): (0.5, 0.0), (True, True): (0.0, 0.1)}
