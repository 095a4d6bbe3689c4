from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from timm.layers import SwiGLUPacked
from timm.models.eva import Eva
from torch import Tensor, nn

from trainers.models.config import VitConfig
from trainers.models.encoders import Encoder
from trainers.models.packed import Group, add_branch, take
from trainers.models.vit import VisionTransformer, attend, axial_rotation, rotate

TINY = VitConfig(image_size=32, patch_size=8, dim=48, depth=3, heads=3)
MODERN = VitConfig(**TINY.model_dump() | {"registers": 4, "layer_scale": 0.5, "mlp": "swiglu", "mask_token": True})
ROTARY = MODERN.model_copy(update={"positions": "rope"})
DROPPING = MODERN.model_copy(update={"drop_path": 0.5})


def vit(config: VitConfig, dtype: torch.dtype = torch.float64) -> VisionTransformer:
    """A network in which every parameter matters: at their initial values many are next to nothing."""
    network = VisionTransformer(config).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return network


def crops(*shapes: tuple[int, int, int], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(num, 3, height, width, generator=generator).to(dtype) for num, height, width in shapes]


def multi_crop(dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return crops((4, 32, 32), (6, 16, 16), (2, 24, 40), dtype=dtype)


def loss(outputs: Sequence[Tensor]) -> Tensor:
    """A scalar that every number in the outputs bears on, each in its own way."""
    return sum((output.double() * torch.arange(output.numel()).view(output.shape).cos()).sum() for output in outputs)  # type: ignore[return-value]


def gradients(network: nn.Module, scalar: Tensor) -> dict[str, Tensor]:
    network.zero_grad()
    scalar.backward()
    return {name: parameter.grad.clone() for name, parameter in network.named_parameters() if parameter.grad is not None}


def timms(config: VitConfig) -> nn.Module:
    return timm.models.VisionTransformer(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.dim,
        depth=config.depth,
        num_heads=config.heads,
        num_classes=0,
        global_pool="avg" if config.pool == "mean" else "token",
        dynamic_img_size=True,
        init_values=config.layer_scale,
        reg_tokens=config.registers,
        no_embed_class=config.registers > 0,
        **({"mlp_layer": SwiGLUPacked, "mlp_ratio": 256 / 48, "act_layer": nn.SiLU} if config.mlp == "swiglu" else {}),
    )


@pytest.mark.parametrize("changes", [{}, {"pool": "mean"}, {"registers": 4, "layer_scale": 1e-5}, {"mlp": "swiglu"}])
def test_our_vit_is_timms_in_both_directions(changes: dict[str, Any]) -> None:
    config = TINY.model_copy(update=changes)
    ours, peer = vit(config, torch.float32).eval(), timms(config).eval()
    peer.load_state_dict(ours.state_dict(), strict=True)
    back = VisionTransformer(config).eval()
    back.load_state_dict(peer.state_dict(), strict=True)
    for images in multi_crop(torch.float32):
        expected = peer.forward_features(images)
        assert torch.allclose(ours(images), peer(images), atol=1e-4)
        assert torch.equal(back(images), ours(images))
        if config.pool == "class":
            assert torch.allclose(ours.tokens([images]).patches[0], expected[:, 1 + config.registers :], atol=1e-4)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (VitConfig(size="tiny"), "vit_tiny_patch16_224"),
        (VitConfig(size="small", patch_size=14, registers=4, layer_scale=1e-5), "vit_small_patch14_reg4_dinov2"),
        (VitConfig(size="base", patch_size=14, layer_scale=1e-5), "vit_base_patch14_dinov2"),
        (VitConfig(size="large", patch_size=14, registers=4, layer_scale=1e-5), "vit_large_patch14_reg4_dinov2"),
        (VitConfig(size="giant", patch_size=14, registers=4, layer_scale=1e-5, mlp="swiglu"), "vit_giant_patch14_reg4_dinov2"),
    ],
)
def test_sizes_are_those_of_the_published_models(config: VitConfig, name: str) -> None:
    with torch.device("meta"):
        ours, peer = VisionTransformer(config), timm.create_model(name, img_size=224, num_classes=0)
    assert {n: p.shape for n, p in ours.state_dict().items()} == {n: p.shape for n, p in peer.state_dict().items()}


def test_rotary_positions_are_dinov3s() -> None:
    config = TINY.model_copy(update={"positions": "rope", "registers": 4, "layer_scale": 0.5})
    ours = vit(config, torch.float32).eval()
    peer = Eva(
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_classes=0,
        global_pool="token",
        dynamic_img_size=True,
        qkv_bias=False,
        init_values=0.5,
        rope_type="dinov3",
        rope_temperature=100,
        rope_rotate_half=True,
        use_rot_pos_emb=True,
        use_abs_pos_emb=False,
        num_reg_tokens=4,
        use_fc_norm=False,
    ).eval()
    for block in ours.blocks:
        nn.init.zeros_(block.attn.qkv.bias)  # DINOv3's keys have none, and its published models neither
    renamed = {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in ours.state_dict().items()
        if not name.endswith("qkv.bias")
    }
    peer.load_state_dict(renamed, strict=True)
    for images in multi_crop(torch.float32):
        assert torch.allclose(ours(images), peer(images), atol=1e-4)


def test_rotary_attention_depends_on_offsets_alone() -> None:
    height, width = 3, 5
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(0)).double()
    rotation = axial_rotation(height, width, 16, torch.device("cpu"))
    turned = [rotate(x.expand(1, 1, height * width, 16), rotation)[0, 0] for x in (query, key)]
    scores = (turned[0] @ turned[1].T).view(height, width, height, width)
    assert torch.allclose(scores[1:, 1:, 1:, 1:], scores[:-1, :-1, :-1, :-1], atol=1e-5)
    assert scores[0, 0].std() > 0.1


@pytest.mark.parametrize("config", [TINY, TINY.model_copy(update={"pool": "mean"}), MODERN, ROTARY])
def test_packed_crops_are_crops_one_group_after_another(config: VitConfig) -> None:
    network, groups = vit(config), multi_crop()
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(2)) < 0.4 if config.mask_token else None
    together = network.tokens(groups, mask)
    apart = [network.tokens([group], mask if i == 0 else None) for i, group in enumerate(groups)]
    one_pass = [together.features, *together.patches]
    passes = [torch.cat([one.features for one in apart])] + [one.patches[0] for one in apart]
    assert [tuple(output.shape) for output in one_pass] == [(12, 48), (4, 16, 48), (6, 4, 48), (2, 15, 48)]
    for one, other in zip(one_pass, passes, strict=True):
        assert torch.allclose(one, other, atol=1e-9)
    expected = gradients(network, loss(passes))
    found = gradients(network, loss(one_pass))
    assert found.keys() == expected.keys() == dict(network.named_parameters()).keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-6, atol=1e-8), name


def test_masked_patches_are_not_seen() -> None:
    network, groups = vit(MODERN), multi_crop()
    mask = torch.zeros(4, 16, dtype=torch.bool)
    mask[1, 6] = True  # row 1, column 2
    other = [groups[0].clone(), *groups[1:]]
    other[0][1, :, 8:16, 16:24] += 1
    seen, hidden = network.tokens(groups), network.tokens(groups, mask)
    assert not torch.allclose(network.tokens(other).features[1], seen.features[1])
    assert torch.equal(network.tokens(other, mask).features, hidden.features)
    changed = (hidden.features != seen.features).any(1)
    assert changed.nonzero().flatten().tolist() == [1]
    with pytest.raises(ValueError, match="mask_token"):
        vit(TINY).tokens(groups, mask)


def test_a_mask_token_stays_behind_when_an_encoder_is_saved(tmp_path: Path) -> None:
    network = vit(MODERN, torch.float32)
    Encoder(MODERN, network).save(tmp_path)
    loaded = Encoder.load(tmp_path).backbone
    assert isinstance(loaded, VisionTransformer)
    assert network.mask_token is not None
    assert loaded.mask_token is None
    images = crops((2, 32, 32), dtype=torch.float32)[0]
    assert torch.equal(loaded(images), network(images))


def test_dropped_samples_average_out() -> None:
    groups = [Group(4, 3), Group(6, 2)]
    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def branch(x: Tensor, groups: Sequence[Group]) -> Tensor:
        assert len(x) == sum(group.samples * group.tokens for group in groups)
        return x.sin()

    draws = []
    for turn in range(12):  # over these every sample is taken equally often
        subset = take(groups, [torch.arange(4).roll(turn), torch.arange(6).roll(turn)], rate=0.4)
        assert subset is not None
        assert subset.groups == [Group(2, 3), Group(4, 2)]
        draws.append(add_branch(x, groups, subset, branch))
        assert (draws[-1] == x).all(1).sum() == 2 * 3 + 2 * 2
    assert torch.allclose(torch.stack(draws).mean(0), x + x.sin())


def test_drop_path_saves_its_share_of_rows() -> None:
    network, seen = vit(DROPPING), []
    for block in network.blocks:
        for layer in (block.attn.qkv, block.mlp.fc1):
            layer.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    groups = crops((8, 32, 32), (16, 16, 16))
    network.tokens(groups, orders=network.draw_orders([8, 16], torch.Generator()))
    whole, parts = 8 * 21 + 16 * 9, (8 * 21 + 16 * 9, 6 * 21 + 12 * 9, 4 * 21 + 8 * 9)
    assert seen == [rows for rows in parts for _ in range(2)]
    seen.clear()
    with torch.no_grad():
        network.tokens(groups)
    assert seen == [whole] * 6


def test_drop_path_is_a_function_of_the_generators_seed() -> None:
    network, groups = vit(DROPPING), multi_crop()

    def draw(seed: int) -> list[Tensor]:
        return network.draw_orders([4, 6, 2], torch.Generator().manual_seed(seed))

    def run(orders: list[Tensor]) -> Tensor:
        return network.tokens(groups, orders=orders).features

    assert torch.equal(run(draw(1)), run(draw(1)))
    # Every branch has an order of its own; those of the first block, of which nothing is dropped, do not matter.
    mixed = [draw(1) for _ in range(6)]
    for branch, orders in enumerate(mixed):
        orders[0][branch] = orders[0][branch].roll(1)
    assert [torch.allclose(run(orders), run(draw(1))) for orders in mixed] == [True, True, False, False, False, False]


def test_without_orders_nothing_is_dropped_and_training_says_so() -> None:
    network, same, groups = vit(DROPPING), vit(MODERN), multi_crop()
    with pytest.raises(ValueError, match="draw_orders"):
        network.tokens(groups)
    network.eval()
    assert torch.equal(network.tokens(groups).features, same.tokens(groups).features)
    assert same.draw_orders([4], torch.Generator()) is None


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    network, groups, runs = vit(DROPPING), multi_crop(), []
    orders = network.draw_orders([4, 6, 2], torch.Generator())
    network.blocks[1].mlp.fc1.register_forward_hook(lambda *_: runs.append(1))
    plain = gradients(network, loss([network.tokens(groups, orders=orders).features]))
    assert len(runs) == 1
    network.checkpoints_blocks = True
    spared = gradients(network, loss([network.tokens(groups, orders=orders).features]))
    assert len(runs) == 3
    assert all(torch.equal(spared[name], gradient) for name, gradient in plain.items())


@pytest.mark.parametrize("config", [TINY.model_copy(update={"drop_path": 0.5}), ROTARY])
def test_bf16_is_close(config: VitConfig) -> None:
    network, groups = vit(config, torch.float32), multi_crop(torch.float32)
    orders = network.draw_orders([4, 6, 2], torch.Generator())
    exact = network.tokens(groups, orders=orders)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network.tokens(groups, orders=orders)
    low = network.bfloat16().tokens([group.bfloat16() for group in groups], orders=orders)
    for rounded, bound in ((mixed, 0.03), (low, 0.06)):
        for one, other in zip([rounded.features, *rounded.patches], [exact.features, *exact.patches], strict=True):
            assert (one - other).norm() < bound * other.norm()
    assert low.features.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [TINY, ROTARY])
def test_weights_drawn_on_the_meta_device_are_those_drawn_directly(config: VitConfig) -> None:
    with torch.device("meta"):
        network = VisionTransformer(config)
    network.to_empty(device="cpu")
    direct = vit(config, torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        for one in (network, direct):
            torch.manual_seed(0)
            one.init_weights()
    states = network.state_dict(), direct.state_dict()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert direct.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize("checkpoints", [False, True])
def test_it_compiles_into_one_graph(checkpoints: bool) -> None:
    config = ROTARY.model_copy(update={"drop_path": 0.5, "depth": 2})
    network, groups = vit(config), multi_crop()
    network.checkpoints_blocks = checkpoints
    orders = network.draw_orders([4, 6, 2], torch.Generator())
    mask = torch.rand(4, 16, generator=torch.Generator().manual_seed(2)) < 0.4

    def losses(tokens: Callable[..., Any]) -> dict[str, Tensor]:
        outputs = tokens(groups, mask, orders)
        return gradients(network, loss([outputs.features, *outputs.patches]))

    eager, compiled = losses(network.tokens), losses(torch.compile(network.tokens, fullgraph=True, backend="aot_eager"))
    for name, gradient in eager.items():
        assert torch.allclose(compiled[name], gradient, rtol=1e-6, atol=1e-8), name


def test_a_size_stands_for_its_dimensions() -> None:
    small = VitConfig(size="small", patch_size=14)
    assert (small.dim, small.depth, small.heads) == (384, 12, 6)
    assert small == VitConfig(dim=384, depth=12, heads=6, patch_size=14) == VitConfig(**small.model_dump())
    with pytest.raises(ValidationError, match="size small means depth 12, found 8"):
        VitConfig(size="small", depth=8)
    with pytest.raises(ValidationError, match="'tiny', 'small'"):
        VitConfig(size="huge")  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="multiple of 4"):
        VitConfig(dim=18, heads=3, positions="rope")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_is_what_torch_computes_in_any_precision(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (torch.randn(4, 3, 17, 64, generator=generator) for _ in range(4))
    found = _attended(attend, *(part.to(dtype) for part in (q, k, v, gradient)))
    expected = _attended(F.scaled_dot_product_attention, q, k, v, gradient)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.float(), other, rtol=0, atol=5e-2 if dtype == torch.bfloat16 else 1e-5)


def _attended(attention: Callable[[Tensor, Tensor, Tensor], Tensor], *parts: Tensor) -> list[Tensor]:
    """What comes out, and the gradients of what goes in."""
    *inputs, gradient = (part.detach().requires_grad_() for part in parts)
    out = attention(*inputs)
    out.backward(gradient.detach())
    return [out, *(part.grad for part in inputs if part.grad is not None)]
