"""Settings of the views: crops and their colour augmentation; and the names of the sample orders."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.base.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]
OrderName = Literal["shuffled", "balanced", "distinct"]


class ViewsConfig(Config):
    """Multi-crop (Caron et al. 2020, SwAV section 3.3) with the colour augmentation of BYOL and DINO."""

    num_global: int = Field(default=2, ge=1)
    """Number of global crops; every method here needs two."""
    num_local: int = Field(default=6, ge=0)
    """Number of local crops in addition to the global ones."""
    global_size: int = Field(default=224, ge=8)
    """Side of a global crop, in pixels."""
    local_size: int = Field(default=96, ge=8)
    """Side of a local crop, in pixels."""
    global_scale: Scale = (0.4, 1.0)
    """Range of the share of the image's area that a global crop covers, drawn uniformly."""
    local_scale: Scale = (0.05, 0.4)
    """Range of the share of the image's area that a local crop covers, drawn uniformly."""
    flip: Probability = 0.5
    """Probability of a horizontal flip."""
    jitter: Probability = 0.8
    """Probability that brightness, contrast, saturation and hue are jittered, each by at most its setting below."""
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    grayscale: Probability = 0.2
    """Probability of conversion to grayscale."""
    blur: tuple[Probability, Probability, Probability] = (1.0, 0.1, 0.5)
    """Probability of Gaussian blur on the first global, the second global and the local crops."""
    solarize: tuple[Probability, Probability, Probability] = (0.0, 0.2, 0.0)
    """Probability of solarization on the first global, the second global and the local crops."""

    @model_validator(mode="after")
    def _scales_ascend(self) -> "ViewsConfig":
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be [smallest, largest]; found [{low}, {high}]")
        return self
