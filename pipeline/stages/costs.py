"""What encoders and trainings cost, for estimates."""

from functools import lru_cache

from pipeline.stages.timm_costs import counted_cost, known_cost
from trainers.engine.config import TrainConfig
from trainers.models.config import EncoderConfig, PixelsConfig, VitConfig


@lru_cache(64)
def encoder_cost(config: EncoderConfig, size: int | None = None) -> tuple[float, int]:
    """Forward FLOPs of one image with `size` pixels a side, and the feature dimension. Nothing is allocated.

    Default size: the encoder's `image_size`. Two FLOPs for a multiplication with an addition; only matrix products,
    convolutions and attention count. Needs torch for none but models of timm that are not in the table of `timm_costs`.
    """
    if isinstance(config, PixelsConfig):
        inputs = 3 * config.image_size**2
        return 2.0 * inputs * config.dim, min(config.dim, inputs)
    size = size or config.image_size
    if isinstance(config, VitConfig):
        return _vit_flops(config, size), config.dim
    return known_cost(config, size) or counted_cost(config, size)


def _vit_flops(config: VitConfig, size: int) -> float:
    """Forward FLOPs of `trainers.models.vit.VisionTransformer`, as torch's FlopCounterMode counts them."""
    dim, patches = config.dim, (size // config.patch_size) ** 2
    tokens = patches + 1 + config.registers
    embedding = 2 * patches * 3 * config.patch_size**2 * dim
    projections = 2 * tokens * dim * 4 * dim  # queries, keys and values, and the output
    attention = 2 * 2 * tokens**2 * dim
    if config.mlp == "swiglu":
        hidden = (4 * dim * 2 // 3 + 7) // 8 * 8
        mlp = 2 * tokens * dim * 3 * hidden
    else:
        mlp = 2 * tokens * dim * 8 * dim
    return float(embedding + config.depth * (projections + attention + mlp))


def train_flops(config: TrainConfig) -> float:
    """FLOPs of one sample's step: forward and backward of the student on every crop, the teacher on the global ones.

    With stages the mean over the training.
    """
    teacher = 1 if "momentum" in type(config.method).model_fields else 0
    stages = config.views_from()
    ends = [*(begins for begins, _ in stages[1:]), 1.0]
    flops = 0.0
    for (begins, views), end in zip(stages, ends, strict=True):
        whole = encoder_cost(config.encoder, views.global_size)[0]
        local = encoder_cost(config.encoder, views.local_size)[0] if views.num_local else 0
        flops += (end - begins) * (whole * 2 * (3 + teacher) + local * views.num_local * 3)
    return flops
