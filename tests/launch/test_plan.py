import pytest

from pipeline.stages.costs import train_flops
from trainers.engine.config import TrainConfig


def flops(method: str, num_local: int) -> float:
    encoder = {"type": "timm", "model": "test_resnet", "image_size": 32}
    views = {"num_local": num_local, "global_size": 32, "local_size": 32}
    return train_flops(TrainConfig.model_validate({"method": {"type": method}, "encoder": encoder, "views": views}))


@pytest.mark.parametrize("method", ["dino", "byol", "moco-v2"])
def test_a_teacher_sees_the_global_crops_once(method: str) -> None:
    assert flops(method, 0) == pytest.approx(flops("simclr", 0) * 4 / 3)
    assert flops(method, 4) == pytest.approx(flops("simclr", 4) + flops("simclr", 0) / 3)
