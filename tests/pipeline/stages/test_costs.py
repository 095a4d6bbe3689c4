import pytest

from curation.base.errors import ConfigError
from pipeline.stages.costs import encoder_cost, train_flops
from pipeline.stages.timm_costs import counted_cost, known_cost
from trainers.engine.config import TrainConfig
from trainers.models.config import PixelsConfig, TimmConfig, VitConfig


def flops(method: str, num_local: int) -> float:
    encoder = {"type": "timm", "model": "test_resnet", "image_size": 32}
    views = {"num_local": num_local, "global_size": 32, "local_size": 32}
    return train_flops(TrainConfig.model_validate({"method": {"type": method}, "encoder": encoder, "views": views}))


@pytest.mark.parametrize("method", ["dino", "byol", "moco-v2"])
def test_a_teacher_sees_the_global_crops_once(method: str) -> None:
    assert flops(method, 0) == pytest.approx(flops("simclr", 0) * 4 / 3)
    assert flops(method, 4) == pytest.approx(flops("simclr", 4) + flops("simclr", 0) / 3)


def test_components_of_pixels_cost_a_matrix_product() -> None:
    assert encoder_cost(PixelsConfig(image_size=16, dim=64)) == (2 * 3 * 16**2 * 64, 64)
    assert encoder_cost(PixelsConfig(image_size=4, dim=64)) == (2 * 3 * 4**2 * 64, 48)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"size": "small"}, 224),
        ({"size": "small", "drop_path": 0.1}, 96),
        ({"size": "large", "layer_scale": 1e-5, "mask_token": True}, 96),
        ({"size": "giant", "mlp": "swiglu", "patch_size": 14, "registers": 4, "layer_scale": 1e-5}, 98),
        ({"image_size": 32, "patch_size": 4, "dim": 192, "depth": 6, "heads": 3, "pool": "mean"}, 32),
        ({"image_size": 64, "registers": 2, "positions": "rope", "mlp": "swiglu", "pool": "mean"}, 48),
    ],
)
def test_a_vit_costs_what_torch_counts(settings: dict[str, object], size: int) -> None:
    config = VitConfig.model_validate(settings)
    assert encoder_cost(config, size) == counted_cost(config, size)
    assert encoder_cost(config) == encoder_cost(config, config.image_size)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({"model": "test_resnet", "image_size": 32}, 32),
        ({"model": "resnet18", "image_size": 32, "small_stem": True}, 32),
        ({"model": "resnet50.a1_in1k"}, 96),
        ({"model": "convnext_atto"}, 160),
        ({"model": "regnety_002"}, 128),
        ({"model": "mobilenetv3_small_100"}, 64),
        ({"model": "vit_tiny_patch16_224"}, 96),
        ({"model": "vit_small_patch14_reg4_dinov2.lvd142m", "image_size": 518}, 98),
        ({"model": "vit_small_patch16_dinov3"}, 112),
        ({"model": "vit_base_patch16_siglip_224"}, 224),
        ({"model": "swin_tiny_patch4_window7_224"}, 224),
    ],
)
def test_the_table_of_timms_models_holds_what_torch_counts(settings: dict[str, object], size: int) -> None:
    config = TimmConfig.model_validate(settings)
    count, dim = counted_cost(config, size)
    assert encoder_cost(config, size) == (pytest.approx(count, rel=1e-9), dim)


@pytest.mark.parametrize(("model", "size"), [("resnet10t", 48), ("resnet50", 112), ("efficientnet_b0", 80)])
def test_sizes_that_strides_do_not_divide_cost_about_as_much(model: str, size: int) -> None:
    config = TimmConfig(model=model)
    assert encoder_cost(config, size)[0] == pytest.approx(counted_cost(config, size)[0], rel=0.3)


def test_a_model_that_is_not_in_the_table_is_counted() -> None:
    config = TimmConfig(model="test_efficientnet", image_size=64)
    assert known_cost(config, 64) is None
    assert encoder_cost(config) == counted_cost(config, 64)
    with pytest.raises(ConfigError, match="timm has no model named 'resnet5000'"):
        encoder_cost(TimmConfig(model="resnet5000"))
