"""What a user may set about encoders, training and evaluation."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.config import Config

Probability = Annotated[float, Field(ge=0, le=1)]
Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]


class PixelsConfig(Config):
    """No network: the largest principal components of the image's pixels. Starts a first round without weights."""

    type: Literal["pixels"] = "pixels"
    image_size: int = Field(default=16, ge=4, le=128)
    """Images are scaled to this many pixels a side first."""
    dim: int = Field(default=128, ge=1)
    """Components to keep; capped at what the pixels and the sample allow."""


class VitConfig(Config):
    """Our Vision Transformer (Dosovitskiy et al. 2021); its weights load into timm's VisionTransformer."""

    type: Literal["vit"] = "vit"
    image_size: int = Field(default=224, ge=8)
    patch_size: int = Field(default=16, ge=1)
    dim: int = Field(default=192, ge=8)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=3, ge=1)
    pool: Literal["class", "mean"] = "class"
    """The feature: the class token, or the mean of the patch tokens, which small models on small images learn faster."""

    @model_validator(mode="after")
    def _divisible(self) -> "VitConfig":
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} must be a multiple of patch_size {self.patch_size}")
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} must be a multiple of heads {self.heads}")
        return self


class TimmConfig(Config):
    """Any model of the timm library, without its classifier."""

    type: Literal["timm"] = "timm"
    model: str = "resnet18"
    """A name from `timm.list_models()`."""
    pretrained: bool = False
    """Start from timm's published weights, which are downloaded."""
    image_size: int = Field(default=224, ge=8)


EncoderConfig = Annotated[PixelsConfig | VitConfig | TimmConfig, Field(discriminator="type")]
TrainableConfig = Annotated[VitConfig | TimmConfig, Field(discriminator="type")]


class ViewsConfig(Config):
    """Multi-crop (Caron et al. 2020, SwAV section 3.3) with the colour augmentation of BYOL and DINO."""

    num_global: int = Field(default=2, ge=1)
    """Global crops; every method here wants two."""
    num_local: int = Field(default=6, ge=0)
    """Local crops beside the global ones."""
    global_size: int = Field(default=224, ge=8)
    local_size: int = Field(default=96, ge=8)
    global_scale: Scale = (0.4, 1.0)
    """Share of the image's area a global crop covers, drawn uniformly."""
    local_scale: Scale = (0.05, 0.4)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    """How often brightness, contrast, saturation and hue are jittered, by at most the next four."""
    brightness: float = Field(default=0.4, ge=0, le=1)
    contrast: float = Field(default=0.4, ge=0, le=1)
    saturation: float = Field(default=0.2, ge=0, le=1)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    grayscale: Probability = 0.2
    blur: tuple[Probability, Probability, Probability] = (1.0, 0.1, 0.5)
    """Gaussian blur on the first global, the second global and the local crops."""
    solarize: tuple[Probability, Probability, Probability] = (0.0, 0.2, 0.0)

    @model_validator(mode="after")
    def _scales_ascend(self) -> "ViewsConfig":
        for name in ("global_scale", "local_scale"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} runs from small to large; found [{low}, {high}]")
        return self


class DinoConfig(Config):
    """Self-distillation with no labels (Caron et al. 2021). Defaults from its paper and code for ViT-S."""

    type: Literal["dino"] = "dino"
    prototypes: int = Field(default=65536, ge=2)
    hidden_dim: int = Field(default=2048, ge=1)
    bottleneck_dim: int = Field(default=256, ge=1)
    student_temperature: float = Field(default=0.1, gt=0)
    teacher_temperature: float = Field(default=0.04, gt=0)
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """Rises linearly from here over `teacher_warmup_epochs`."""
    teacher_warmup_epochs: float = Field(default=0, ge=0)
    momentum: float = Field(default=0.996, ge=0, le=1)
    """Of the teacher; rises to 1 on a cosine."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    freeze_prototypes_epochs: float = Field(default=1, ge=0)


class SwavConfig(Config):
    """Swapped assignments between views (Caron et al. 2020). Defaults from its paper and code."""

    type: Literal["swav"] = "swav"
    prototypes: int = Field(default=3000, ge=2)
    hidden_dim: int = Field(default=2048, ge=1)
    bottleneck_dim: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.1, gt=0)
    epsilon: float = Field(default=0.05, gt=0)
    """Entropy regularisation of the Sinkhorn codes."""
    sinkhorn_iterations: int = Field(default=3, ge=1)
    freeze_prototypes_epochs: float = Field(default=1, ge=0)


MethodConfig = Annotated[DinoConfig | SwavConfig, Field(discriminator="type")]


class TrainConfig(Config):
    """Self-supervised pretraining on the selected samples."""

    operational = frozenset({"ranks", "checkpoint_every", "log_every", "threads"})

    method: MethodConfig = DinoConfig()
    encoder: TrainableConfig = VitConfig()
    views: ViewsConfig = ViewsConfig()
    epochs: float = Field(default=100, gt=0)
    """Passes over the selected samples, repeats included."""
    global_batch_size: int = Field(default=256, ge=2)
    """Samples of one step over all ranks; the number of ranks must divide it."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak rate at a global batch of 256; scaled linearly with the batch."""
    final_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_epochs: float = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.04, ge=0)
    final_weight_decay: float = Field(default=0.4, ge=0)
    clip_gradient: float = Field(default=3.0, gt=0)
    """Largest global gradient norm."""
    warm_start: bool = True
    """From the second round on, start from the last round's student and teacher instead of from nothing."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on the CPU."""
    ranks: int | None = Field(default=None, ge=1)
    """Training processes. Left out: one a GPU, or two on a machine without."""
    order: Literal["shuffled", "balanced", "distinct"] = "shuffled"
    """shuffled: an epoch shows each selected sample, as often as it repeats, in an order of its own. balanced: every label of
    `order_by` equally often. distinct: no label twice in a step, as far as that is possible."""
    order_by: str | None = None
    """Column of the training list with the label that `order` looks at, such as level_1."""
    max_bad_fraction: Probability = 0.01
    """Samples that cannot be read are replaced by others, up to this share of those shown; of the first 1,000 that many."""
    threads: int = Field(default=2, ge=1)
    """Decoding threads of each rank."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    log_every: int = Field(default=10, ge=1)
    """Steps between progress lines."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if (self.order == "shuffled") != (self.order_by is None):
            raise ValueError("order balanced or distinct goes with order_by, the column of labels; shuffled without")
        if self.views.num_global != 2:
            raise ValueError(f"views.num_global {self.views.num_global} must be 2: every method compares two global crops")
        if self.ranks and self.global_batch_size % self.ranks:
            raise ValueError(f"global_batch_size {self.global_batch_size} must be a multiple of ranks {self.ranks}")
        if isinstance(self.encoder, VitConfig):
            for name in ("global_size", "local_size"):
                if getattr(self.views, name) % self.encoder.patch_size:
                    raise ValueError(
                        f"views.{name} {getattr(self.views, name)} must be a multiple of "
                        f"encoder.patch_size {self.encoder.patch_size}"
                    )
        return self


class EvaluateConfig(Config):
    """What frozen features are worth. Labels, where the source has class folders, are read here and nowhere else."""

    operational = frozenset({"batch_size"})

    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10, 20), min_length=1)
    """k of the weighted kNN classifier; the best is reported."""
    temperature: float = Field(default=0.07, gt=0)
    max_samples: int = Field(default=20_000, ge=10)
    """Labelled samples used, of the pool and of the held-out split each, at the most."""
    batch_size: int = Field(default=256, ge=1)
