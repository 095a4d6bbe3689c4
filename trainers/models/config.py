"""Settings of the encoders."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from curation.base.config import Config

Channel = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class PixelsConfig(Config):
    """No network: the largest principal components of the image's pixels. Starts a first round without weights."""

    type: Literal["pixels"] = "pixels"
    image_size: int = Field(default=16, ge=4, le=128)
    """Side in pixels to which images are scaled first."""
    dim: int = Field(default=128, ge=1)
    """Number of components to keep; capped at what the pixels and the sample allow."""


_VIT_SIZES = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "giant": {"dim": 1536, "depth": 40, "heads": 24},
}


class VitConfig(Config):
    """windrow's Vision Transformer (Dosovitskiy et al. 2021); its weights load into timm's VisionTransformer."""

    type: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large", "giant"] | None = Field(default=None, exclude=True)
    """Shorthand for dim, depth and heads: those of ViT-Ti, S, B and L, or of DINOv2's ViT-g, which also takes mlp=swiglu."""
    image_size: int = Field(default=224, ge=8)
    """Side in pixels of the images that the learned positions are made for."""
    patch_size: int = Field(default=16, ge=1)
    """Side of a patch, in pixels."""
    dim: int = Field(default=192, ge=8)
    """Width of the tokens and of the feature."""
    depth: int = Field(default=12, ge=1)
    """Number of blocks."""
    heads: int = Field(default=3, ge=1)
    """Number of attention heads."""
    pool: Literal["class", "mean"] = "class"
    """The feature: the class token, or the mean of the patch tokens, which small models on small images learn faster."""
    registers: int = Field(default=0, ge=0)
    """Number of register tokens: extra tokens that belong to no patch and hold global information (Darcet et al. 2024)."""
    layer_scale: float | None = Field(default=None, gt=0)
    """Initial value of a learned factor per channel on every residual branch (CaiT; DINOv2: 1e-5). Default: no such factor."""
    drop_path: float = Field(default=0, ge=0, lt=1)
    """Stochastic depth: share of the samples that skip the last block in training; rises linearly from 0 at the first."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The plain MLP, or a gated one with the same number of weights (Shazeer 2020; DINOv2's ViT-g)."""
    positions: Literal["learned", "rope"] = "learned"
    """learned: one embedding for every patch of `image_size`, interpolated for other sizes. rope: rotary as in DINOv3, which
    timm's VisionTransformer does not have."""
    mask_token: bool = False
    """Whether there is a token to put in place of masked patches, for methods that predict those. It is not part of the saved
    encoder."""
    mean: tuple[Channel, Channel, Channel] = (0.5, 0.5, 0.5)
    """Subtracted from the channels of images in [0, 1], which are then divided by `std`."""
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    """Divisor of each channel, after `mean` is subtracted."""
    weights: AbsolutePath | None = None
    """Safetensors file with timm's names to start from: DINO, DINOv2, DINOv3 or MAE as timm has them, or an encoder saved by
    windrow. Positions are interpolated to `image_size`. Shapes are checked, but not the number of heads: no file holds it."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, settings: Any) -> Any:
        """Replace `size` by the dimensions that it stands for."""
        dimensions = _VIT_SIZES.get(str(settings.get("size"))) if isinstance(settings, dict) else None
        if dimensions is None:
            return settings
        for name, value in dimensions.items():
            if settings.get(name, value) != value:
                raise ValueError(f"size {settings['size']} means {name} {value}, found {settings[name]}: leave out one of them")
        return {name: value for name, value in settings.items() if name != "size"} | dimensions

    @model_validator(mode="after")
    def _divisible(self) -> "VitConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        if self.weights and not {"mean", "std"} <= self.model_fields_set:
            raise ValueError(
                "weights needs mean and std, those of the images it was trained on: [0.485, 0.456, 0.406] and "
                "[0.229, 0.224, 0.225] for DINO, DINOv2, DINOv3 and MAE, all 0.5 for an encoder of windrow's own"
            )
        if self.positions == "rope" and self.dim // self.heads % 4:
            raise ValueError(f"with positions=rope, dim {self.dim} must be a multiple of 4 * heads {self.heads}")
        return self


class TimmConfig(Config):
    """Any model of the timm library, without its classifier."""

    type: Literal["timm"] = "timm"
    model: str = "resnet18"
    """A name from `timm.list_models()`."""
    pretrained: bool = False
    """Whether to start from timm's published weights, which are downloaded."""
    weights: AbsolutePath | None = None
    """Safetensors file of this model to start from instead; a classifier in it is ignored. Mean and deviation of the images
    are those that timm states for `model`, including its tag if it has one, such as vit_base_patch16_224.mae."""
    image_size: int = Field(default=224, ge=8)
    """Side in pixels of the images that the model is built for."""
    small_stem: bool = False
    """Whether a ResNet begins with a 3 x 3 convolution of stride 1 and no pooling, as for images of 32 pixels (Chen et al.
    2020, SimCLR, appendix B.9)."""

    @model_validator(mode="after")
    def _stem_is_trained(self) -> "TimmConfig":
        if self.small_stem and self.pretrained:
            raise ValueError("small_stem has no published weights: leave out pretrained, or small_stem")
        return self

    @model_validator(mode="after")
    def _starts_once(self) -> "TimmConfig":
        if self.pretrained and self.weights:
            raise ValueError("weights and pretrained are two ways to start: give one of them")
        return self


EncoderConfig = Annotated[PixelsConfig | VitConfig | TimmConfig, Field(discriminator="type")]
TrainableConfig = Annotated[VitConfig | TimmConfig, Field(discriminator="type")]
