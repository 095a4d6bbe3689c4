"""Settings of the methods. Defaults are those of the paper or the authors' code, for data of ImageNet's size."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.base.config import Config

Temperature = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, le=1)]
Size = Annotated[int, Field(ge=1)]


class PrototypesConfig(Config):
    """Settings that methods with learned prototypes share."""

    prototypes: int = Field(default=3000, ge=2)
    """Number of prototypes."""
    hidden_dim: Size = 2048
    """Width of the hidden layers of the projector."""
    bottleneck_dim: Size = 128
    """Width of the projected embedding that is compared with the prototypes."""
    nested: Annotated[int, Field(ge=1, le=8)] = 1
    """Number of projectors with prototypes: on the whole feature, its first half, its first quarter, …, with prototypes in
    proportion. A prefix of the feature is then a useful feature, too (Franca 2025)."""
    freeze_prototypes_epochs: float = Field(default=1, ge=0)
    """Epochs at the start in which the prototypes are not trained."""


class DinoConfig(PrototypesConfig):
    """Self-distillation with no labels (Caron et al. 2021), with the settings for ViT-S."""

    type: Literal["dino"] = "dino"
    prototypes: int = Field(default=65536, ge=2)
    bottleneck_dim: Size = 256
    student_temperature: Temperature = 0.1
    teacher_temperature: Temperature = 0.04
    teacher_temperature_start: Temperature = 0.04
    """Teacher temperature at the start; rises linearly to `teacher_temperature` over `teacher_warmup_epochs`."""
    teacher_warmup_epochs: float = Field(default=0, ge=0)
    momentum: Momentum = 0.996
    """Momentum of the teacher's moving average at the start; rises to 1 on a cosine."""
    targets: Literal["centering", "sinkhorn"] = "centering"
    """Protection of the teacher's targets from collapse: their mean is subtracted, or three Sinkhorn-Knopp iterations run."""
    center_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of the moving average that is subtracted."""


class IbotConfig(DinoConfig):
    """DINO, and the same for the patches a block mask hides from the student (Zhou et al. 2022). Needs a ViT."""

    type: Literal["ibot"] = "ibot"  # type: ignore[assignment]
    prototypes: int = Field(default=8192, ge=2)
    mask_probability: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Probability that a global crop has hidden patches."""
    mask_ratio: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]] = (0.1, 0.5)
    """Range of the share of its patches that are hidden, drawn uniformly."""
    patch_weight: float = Field(default=1, ge=0)
    """Weight of the patch loss."""

    @model_validator(mode="after")
    def _ratio_ascends(self) -> "IbotConfig":
        if self.mask_ratio[0] > self.mask_ratio[1]:
            raise ValueError(f"mask_ratio must be [smallest, largest]; found {list(self.mask_ratio)}")
        return self


class Dinov2Config(IbotConfig):
    """DINO and iBOT with heads of their own, and KoLeo (Oquab et al. 2024). Needs a ViT."""

    type: Literal["dinov2"] = "dinov2"  # type: ignore[assignment]
    prototypes: int = Field(default=65536, ge=2)
    targets: Literal["centering", "sinkhorn"] = "sinkhorn"
    koleo_weight: float = Field(default=0.1, ge=0)
    """Weight of the KoLeo loss."""
    teacher_temperature: Temperature = 0.07
    teacher_warmup_epochs: float = Field(default=30, ge=0)
    momentum: Momentum = 0.992


class SwavConfig(PrototypesConfig):
    """Swapped assignments between views (Caron et al. 2020)."""

    type: Literal["swav"] = "swav"
    temperature: Temperature = 0.1
    epsilon: Temperature = 0.05
    """Entropy regularisation of the Sinkhorn codes."""
    sinkhorn_iterations: Size = 3
    queue: int = Field(default=0, ge=0)
    """Number of embeddings of earlier samples that take part in the codes, for batches with fewer samples than prototypes."""
    queue_start_epoch: float = Field(default=15, ge=0)
    """Epoch from which the queue is used."""


class DeepClusterConfig(PrototypesConfig):
    """DeepCluster-v2 (Caron et al. 2020, appendix): before every epoch, k-means of the last embeddings gives the prototypes."""

    type: Literal["deepcluster-v2"] = "deepcluster-v2"
    heads: Size = 3
    """Number of clusterings, each with its own seeds."""
    temperature: Temperature = 0.1
    iterations: Size = 10
    """Iterations of the spherical k-means."""
    nested: Literal[1] = 1
    freeze_prototypes_epochs: Literal[0] = 0


class SimclrConfig(Config):
    """Contrast of every view with every other (Chen et al. 2020)."""

    type: Literal["simclr"] = "simclr"
    hidden_dim: Size = 2048
    dim: Size = 128
    temperature: Temperature = 0.1


class MocoV2Config(Config):
    """Momentum contrast with a queue (He et al. 2020, Chen et al. 2020)."""

    type: Literal["moco-v2"] = "moco-v2"
    hidden_dim: Size = 2048
    dim: Size = 128
    temperature: Temperature = 0.2
    momentum: Momentum = 0.999
    queue: Size = 65536
    """Number of keys of earlier samples that serve as negatives."""


class MocoV3Config(Config):
    """Momentum contrast without a queue, with a predictor (Chen et al. 2021)."""

    type: Literal["moco-v3"] = "moco-v3"
    hidden_dim: Size = 4096
    dim: Size = 256
    temperature: Temperature = 0.2
    momentum: Momentum = 0.99
    """Momentum of the teacher's moving average at the start; rises to 1 on a cosine."""


class ByolConfig(Config):
    """Bootstrap your own latent (Grill et al. 2020)."""

    type: Literal["byol"] = "byol"
    hidden_dim: Size = 4096
    dim: Size = 256
    momentum: Momentum = 0.996
    """Momentum of the teacher's moving average at the start; rises to 1 on a cosine."""


class BarlowTwinsConfig(Config):
    """Redundancy reduction (Zbontar et al. 2021)."""

    type: Literal["barlow-twins"] = "barlow-twins"
    hidden_dim: Size = 8192
    dim: Size = 8192
    redundancy_weight: float = Field(default=0.005, ge=0)


class VicregConfig(Config):
    """Variance, invariance and covariance (Bardes et al. 2022)."""

    type: Literal["vicreg"] = "vicreg"
    hidden_dim: Size = 8192
    dim: Size = 8192
    invariance_weight: float = Field(default=25, ge=0)
    variance_weight: float = Field(default=25, ge=0)
    covariance_weight: float = Field(default=1, ge=0)


class WmseConfig(Config):
    """Whitening and the mean squared error (Ermolov et al. 2021)."""

    type: Literal["w-mse"] = "w-mse"
    hidden_dim: Size = 1024
    dim: Size = 64
    slice_size: Annotated[int, Field(ge=2)] = 128
    """Number of samples whitened together; must divide the global batch and be larger than `dim`."""
    permutations: Size = 1
    """Number of random cuts of the batch into slices."""

    @model_validator(mode="after")
    def _has_rank(self) -> "WmseConfig":
        if self.slice_size <= self.dim:
            raise ValueError(
                f"slice_size {self.slice_size} must be larger than dim {self.dim}: fewer samples have no full rank"
            )
        return self


class NpidConfig(Config):
    """Instance discrimination with a memory bank (Wu et al. 2018). Uses only the first global crop."""

    type: Literal["npid"] = "npid"
    dim: Size = 128
    temperature: Temperature = 0.07
    negatives: Size = 4096
    bank_momentum: Momentum = 0.5
    proximal_weight: float = Field(default=0, ge=0)
    """Weight of the squared distance to the bank's entry."""


class SupconConfig(SimclrConfig):
    """Supervised contrast (Khosla et al. 2020) with pseudo-labels."""

    type: Literal["supcon"] = "supcon"  # type: ignore[assignment]


class ClassifyConfig(Config):
    """Plain classification of pseudo-labels, as in DeepCluster and ClusterFit."""

    type: Literal["classify"] = "classify"
    classes: Annotated[int, Field(ge=2)] = 1000
    """Number of classes."""
    label_smoothing: float = Field(default=0, ge=0, lt=1)


MethodConfig = Annotated[
    DinoConfig
    | IbotConfig
    | Dinov2Config
    | SwavConfig
    | DeepClusterConfig
    | SimclrConfig
    | MocoV2Config
    | MocoV3Config
    | ByolConfig
    | BarlowTwinsConfig
    | VicregConfig
    | WmseConfig
    | NpidConfig
    | SupconConfig
    | ClassifyConfig,
    Field(discriminator="type"),
]
