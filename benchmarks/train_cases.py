"""What `train_step.py` and its peers train: cases of a method, an encoder, views and a batch."""

from typing import NamedTuple

from trainers.data.config import ViewsConfig
from trainers.methods.config import DinoConfig, Dinov2Config, MethodConfig, SimclrConfig
from trainers.models.config import TimmConfig, TrainableConfig, VitConfig


class Case(NamedTuple):
    """What is trained, and for how many steps."""

    method: MethodConfig
    encoder: TrainableConfig
    views: ViewsConfig
    batch: int
    warm_up: int = 10
    steps: int = 50


_MULTI_CROP = ViewsConfig(num_local=8)
CASES = {
    "dino-vit-cpu": Case(
        DinoConfig(prototypes=1024, hidden_dim=128, bottleneck_dim=64),
        VitConfig(image_size=64, patch_size=16, dim=96, depth=2, heads=3),
        ViewsConfig(num_local=4, global_size=64, local_size=32),
        batch=16,
        warm_up=2,
        steps=10,
    ),
    "dino-vit_small": Case(DinoConfig(), VitConfig(size="small"), _MULTI_CROP, batch=128),
    "dino-vit_base": Case(DinoConfig(), VitConfig(size="base"), _MULTI_CROP, batch=96),
    "dinov2-vit_large": Case(Dinov2Config(), VitConfig(size="large", layer_scale=1e-5, mask_token=True), _MULTI_CROP, batch=64),
    "simclr-resnet18-cifar": Case(
        SimclrConfig(),
        TimmConfig(model="resnet18", image_size=32),
        ViewsConfig(num_local=0, global_size=32, global_scale=(0.08, 1.0), blur=(0, 0, 0), solarize=(0, 0, 0)),
        batch=512,
    ),
}
