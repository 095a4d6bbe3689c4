import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn

from curation.base.errors import DataError
from tests.trainers.data.test_loader import shards
from tests.trainers.engine.test_train import CONFIG, VIT, go
from trainers.models.config import TimmConfig, VitConfig
from trainers.models.encoders import Encoder, build_backbone, build_encoder
from trainers.output_files import CHECKPOINTS

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # name: how timm builds it, how we do. As published but for their size: heads of 64 channels, 224 pixels.
    "vit_small_patch14_dinov2": ({}, {"layer_scale": 1e-5, "patch_size": 14}),
    "vit_small_patch14_reg4_dinov2": ({}, {"layer_scale": 1e-5, "patch_size": 14, "registers": 4}),
    "vit_base_patch16_224.mae": ({}, {"patch_size": 16}),
    "vit_small_patch16_dinov3": (
        {"global_pool": "token"},
        {"layer_scale": 1e-5, "patch_size": 16, "registers": 4, "positions": "rope"},
    ),
    "vit_small_patch16_dinov3_qkvb": (
        {"global_pool": "token"},
        {"layer_scale": 1e-5, "patch_size": 16, "registers": 4, "positions": "rope"},
    ),
}


def published(name: str, path: Path, **changes: Any) -> nn.Module:
    """A model of timm's with a classifier and random weights, also where it begins with zeros, and `path` with its weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=7, **changes).eval()
        for parameter in model.parameters():
            if parameter.dim() < 2:
                nn.init.normal_(parameter, mean=0.1, std=0.2)
    save_file(model.state_dict(), path)
    model.reset_classifier(0)
    return model


def features(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What timm's model makes of uint8 images."""
    said = model.pretrained_cfg
    mean, std = (torch.tensor(said[name]).view(1, 3, 1, 1) for name in ("mean", "std"))  # type: ignore[index]
    with torch.no_grad():
        return model((images / 255 - mean) / std)


def pictures(side: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", MODELS)
def test_published_vits_become_ours(tmp_path: Path, name: str) -> None:
    timms, our = MODELS[name]
    patch, path = our["patch_size"], tmp_path / "model.safetensors"
    small = {"embed_dim": 128, "depth": 2, "num_heads": 2}
    model = published(name, path, img_size=4 * patch, **small, **timms)
    config = VitConfig(dim=128, depth=2, heads=2, image_size=4 * patch, weights=path, **IMAGENET, **our)
    ours = Encoder(config, build_backbone(config)).eval()
    images = pictures(4 * patch)
    with torch.no_grad():
        assert torch.allclose(ours(images), features(model, images), atol=1e-3)

    larger = config.model_copy(update={"image_size": 6 * patch})
    grown = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 7},
        num_classes=0,
        img_size=6 * patch,
        **small,
        **timms,
    )
    images = pictures(6 * patch)
    with torch.no_grad():
        found = Encoder(larger, build_backbone(larger)).eval()(images)
    assert torch.allclose(found, features(grown.eval(), images), atol=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "vit_base_patch16_224.mae"])
def test_models_of_timm_start_from_a_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.safetensors"
    small = {} if name.startswith("test") else {"img_size": 64}
    model = published(name, path, **small)
    side = 96 if name == "test_vit" else 64
    config = TimmConfig(model=name, image_size=side, weights=path)
    images = pictures(side)
    with torch.no_grad():
        found = build_encoder(config, np.empty(0))(images)
    expected = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 7},
        num_classes=0,
        **({} if name == "test_resnet" else {"img_size": side}),
    )
    assert torch.allclose(found, features(expected.eval(), images), atol=1e-5)
    if name == "vit_base_patch16_224.mae":
        assert torch.allclose(found, features(model, images), atol=1e-5)
        assert model.pretrained_cfg["mean"] == IMAGENET["mean"]  # type: ignore[index]  # of the tag: without it, 0.5


def test_what_does_not_fit_is_listed_with_what_the_file_looks_like(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    published("vit_small_patch14_reg4_dinov2", path, img_size=56, embed_dim=128, depth=3, num_heads=2)
    with pytest.raises(DataError) as caught:
        build_backbone(VitConfig(dim=128, depth=4, heads=2, image_size=56, patch_size=14, weights=path, **IMAGENET))
    told = str(caught.value)
    assert "lacks blocks.3.norm1.weight, blocks.3.norm1.bias, " in told
    assert "and 8 more; has no place for blocks.0.ls1.gamma, blocks.0.ls2.gamma, " in told
    assert "and 3 more; has in another shape" in told
    assert "in another shape pos_embed 1x16x128, here 1x17x128" in told
    assert (
        "{dim: 128, depth: 3, patch_size: 14, registers: 4, layer_scale: 1e-5, mlp: gelu, positions: learned, pool: class}"
        in told
    )
    with pytest.raises(DataError, match=r"lacks conv1\.0\.weight.*no place for.*Set encoder\.model"):
        build_backbone(TimmConfig(model="test_resnet", weights=path))
    save_file({"pos_embed": torch.zeros(()), "blocks.x.attn.qkv.weight": torch.zeros(())}, path)
    with pytest.raises(DataError, match="not a Vision Transformer"):
        build_backbone(VitConfig(image_size=56, patch_size=14, weights=path, **IMAGENET))


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("config", [VIT, TimmConfig(model="test_resnet")], ids=["vit", "timm"])
def test_pickles_and_broken_files_are_refused(tmp_path: Path, config: VitConfig | TimmConfig) -> None:
    path = tmp_path / "model.safetensors"
    config = config.model_copy(update={"weights": path})
    with pytest.raises(DataError, match="cannot be read as safetensors"):
        build_backbone(config)
    for content in (pickle.dumps(_Bomb()), b"", b"\xff" * 100):
        path.write_bytes(content)
        with pytest.raises(DataError, match="cannot be read as safetensors"):
            build_backbone(config)


def test_settings_that_start_twice_or_do_not_say_what_images_were_are_refused() -> None:
    with pytest.raises(ValidationError, match="mean and std"):
        VitConfig(weights=Path("x.safetensors"))
    with pytest.raises(ValidationError, match="two ways to start"):
        TimmConfig(weights=Path("x.safetensors"), pretrained=True)
    config = VitConfig(weights=Path("x.safetensors"), **HALF)
    assert config.weights == Path("x.safetensors").absolute()
    assert VitConfig.model_validate(config.model_dump()) == config


def test_a_training_starts_from_the_weights_and_needs_them_no_more(tmp_path: Path) -> None:
    samples = shards(tmp_path, num=24)
    path = tmp_path / "start.safetensors"
    start = build_encoder(VIT, np.empty(0))
    save_file(start.backbone.state_dict(), path)
    config = CONFIG.model_copy(
        update={"encoder": VIT.model_copy(update={"weights": path, **IMAGENET}), "learning_rate": 1e-12, "epochs": 4.0}
    )
    go(config, samples, tmp_path / "out", stop_after=4)
    (checkpoint,) = (tmp_path / "out" / CHECKPOINTS).iterdir()
    state = load_file(next(checkpoint.glob("*.safetensors")))
    for network in ("student", "teacher"):
        assert torch.allclose(state[f"method.{network}.backbone.cls_token"], start.backbone.cls_token, atol=1e-8)  # type: ignore[arg-type]
        found = state[f"method.{network}.backbone.blocks.0.attn.qkv.weight"]
        assert torch.allclose(found, start.backbone.state_dict()["blocks.0.attn.qkv.weight"], atol=1e-8)
    path.unlink()
    go(config, samples, tmp_path / "out")
    encoder = Encoder.load(tmp_path / "out")
    assert isinstance(encoder.config, VitConfig)
    assert encoder.config.weights is None
    assert encoder.inputs.mean == IMAGENET["mean"]
    assert str(tmp_path) not in (tmp_path / "out" / "encoder.json").read_text()
