import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from curation.base.errors import ConfigError, DataError
from trainers.models.config import PixelsConfig, TimmConfig, VitConfig
from trainers.models.encoders import Encoder, build_backbone, build_encoder

VIT = VitConfig(image_size=32, patch_size=8, dim=48, depth=2, heads=3)


def pictures(num: int = 5, side: int = 32) -> torch.Tensor:
    return torch.randint(0, 256, (num, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_what_is_saved_loads_into_timm(tmp_path: Path) -> None:
    encoder = Encoder(VIT, build_backbone(VIT)).eval()
    encoder.save(tmp_path)
    peer = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=0)
    peer.load_state_dict(load_file(tmp_path / "encoder.safetensors"), strict=True)
    images = pictures()
    assert torch.allclose(encoder(images), peer.eval()((images / 255 - 0.5) / 0.5), atol=1e-5)


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    sample = pictures(40, 8).numpy()
    for config in (PixelsConfig(image_size=8, dim=5), VIT, TimmConfig(model="test_resnet", image_size=32)):
        encoder = build_encoder(config, sample)
        images = pictures(side=config.image_size)
        encoder.save(tmp_path)
        assert torch.equal(Encoder.load(tmp_path)(images), encoder(images))


def test_pixel_components_are_principal() -> None:
    sample = pictures(60, 4).numpy()
    features = build_encoder(PixelsConfig(image_size=4, dim=10), sample)(torch.from_numpy(sample)).numpy()
    flat = sample.reshape(60, -1) / 255 * 2 - 1
    singular = np.linalg.svd(flat, compute_uv=False)[:10]
    assert np.allclose(np.linalg.norm(features, axis=0), singular, rtol=1e-3)


def test_timm_models_see_the_range_they_were_made_for() -> None:
    config = TimmConfig(model="resnet10t", image_size=32)
    encoder = build_encoder(config, np.empty(0))
    said = timm.data.resolve_data_config(model=encoder.backbone)
    mean, std = (torch.tensor(said[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert torch.allclose(encoder(pictures()), encoder.backbone((pictures() / 255 - mean) / std), atol=1e-5)
    assert said["mean"] != (0.5, 0.5, 0.5)


def test_an_unknown_model_is_named_with_its_neighbours() -> None:
    with pytest.raises(ConfigError, match="'resnet19'"):
        build_backbone(TimmConfig(model="resnet19"))


def test_broken_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no usable encoder"):
        Encoder.load(tmp_path)
    Encoder(VIT, build_backbone(VIT)).save(tmp_path)
    description = tmp_path / "encoder.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "dim": 96}))
    with pytest.raises(DataError, match="no usable encoder"):
        Encoder.load(tmp_path)
    (tmp_path / "encoder.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(DataError, match="no usable encoder"):
        Encoder.load(tmp_path)
