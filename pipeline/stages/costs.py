"""What encoders and trainings cost, for estimates."""

from functools import lru_cache

from trainers.engine.config import TrainConfig
from trainers.models.config import EncoderConfig, PixelsConfig


@lru_cache(64)
def encoder_cost(config: EncoderConfig, size: int | None = None) -> tuple[float, int]:
    """Forward FLOPs of one image with `size` pixels a side, and the feature dimension. Nothing is allocated."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainers.models.encoders import build_backbone, without_weights

    if isinstance(config, PixelsConfig):
        inputs = 3 * config.image_size**2
        return 2.0 * inputs * config.dim, min(config.dim, inputs)
    with torch.device("meta"):
        backbone = build_backbone(without_weights(config)).eval()
        with FlopCounterMode(display=False) as counter:
            features = backbone(torch.empty(1, 3, size or config.image_size, size or config.image_size))
    return float(counter.get_total_flops()), features.shape[1]


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
