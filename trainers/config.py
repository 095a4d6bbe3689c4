"""What a user may set about encoders, training and evaluation."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from curation.base.config import Config
from trainers.methods.config import DinoConfig, IbotConfig, MethodConfig, WmseConfig

Probability = Annotated[float, Field(ge=0, le=1)]
Scale = tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]]

Channel = Annotated[float, Field(ge=0, le=1)]
Deviation = Annotated[float, Field(gt=0, le=1)]
AbsolutePath = Annotated[Path, AfterValidator(lambda path: path.expanduser().absolute())]


class PixelsConfig(Config):
    """No network: the largest principal components of the image's pixels. Starts a first round without weights."""

    type: Literal["pixels"] = "pixels"
    image_size: int = Field(default=16, ge=4, le=128)
    """Images are scaled to this many pixels a side first."""
    dim: int = Field(default=128, ge=1)
    """Components to keep; capped at what the pixels and the sample allow."""


_VIT_SIZES = {
    "tiny": {"dim": 192, "depth": 12, "heads": 3},
    "small": {"dim": 384, "depth": 12, "heads": 6},
    "base": {"dim": 768, "depth": 12, "heads": 12},
    "large": {"dim": 1024, "depth": 24, "heads": 16},
    "giant": {"dim": 1536, "depth": 40, "heads": 24},
}


class VitConfig(Config):
    """Our Vision Transformer (Dosovitskiy et al. 2021); its weights load into timm's VisionTransformer."""

    type: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large", "giant"] | None = Field(default=None, exclude=True)
    """One word for dim, depth and heads: those of ViT-Ti, S, B and L, or of DINOv2's g, which is made with mlp=swiglu."""
    image_size: int = Field(default=224, ge=8)
    patch_size: int = Field(default=16, ge=1)
    dim: int = Field(default=192, ge=8)
    depth: int = Field(default=12, ge=1)
    heads: int = Field(default=3, ge=1)
    pool: Literal["class", "mean"] = "class"
    """The feature: the class token, or the mean of the patch tokens, which small models on small images learn faster."""
    registers: int = Field(default=0, ge=0)
    """Tokens of no patch, for the network to keep things in that it would write over plain patches (Darcet et al. 2024)."""
    layer_scale: float | None = Field(default=None, gt=0)
    """Learn a factor per channel of every residual branch, starting from this (CaiT; DINOv2: 1e-5). None: no factor."""
    drop_path: float = Field(default=0, ge=0, lt=1)
    """Stochastic depth: the share of samples that skip the last block in training, rising linearly from none at the first."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """The plain MLP, or a gated one of as many weights (Shazeer 2020; DINOv2's g)."""
    positions: Literal["learned", "rope"] = "learned"
    """Learned for every patch of `image_size` and interpolated for other sizes, or rotary as in DINOv3, which is no part of
    timm's VisionTransformer."""
    mask_token: bool = False
    """Have a token to put in place of masked patches, for methods that predict those. Not part of the saved encoder."""
    mean: tuple[Channel, Channel, Channel] = (0.5, 0.5, 0.5)
    """Taken out of the channels of images in [0, 1], which are then divided by `std`."""
    std: tuple[Deviation, Deviation, Deviation] = (0.5, 0.5, 0.5)
    weights: AbsolutePath | None = None
    """Start from this safetensors file with timm's names: DINO, DINOv2, DINOv3 or MAE as timm has them, or an encoder of our
    own. Positions are interpolated to `image_size`. What fits is checked, but how many heads it has no file tells."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_size(cls, settings: Any) -> Any:
        """Put the dimensions that `size` stands for in its place."""
        meant = _VIT_SIZES.get(str(settings.get("size"))) if isinstance(settings, dict) else None
        if meant is None:
            return settings
        for name, value in meant.items():
            if settings.get(name, value) != value:
                raise ValueError(f"size {settings['size']} means {name} {value}, found {settings[name]}: leave out one of them")
        return {name: value for name, value in settings.items() if name != "size"} | meant

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
    """Start from timm's published weights, which are downloaded."""
    weights: AbsolutePath | None = None
    """Start from this safetensors file, a model of that name without regard to its classifier, instead. What is taken out of
    images is what timm says of `model`, with its tag if it has one, such as vit_base_patch16_224.mae."""
    image_size: int = Field(default=224, ge=8)
    small_stem: bool = False
    """Let a ResNet begin with a 3 x 3 convolution of stride 1 and no pooling, as for images of 32 pixels (Chen et al. 2020,
    SimCLR, appendix B.9)."""

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


class StageConfig(Config):
    """A stretch of a training, up to the next one, with crop sizes of its own: such as the end of it at a higher resolution."""

    begins: float = Field(gt=0, lt=1)
    """After this share of the training's steps."""
    global_size: int = Field(ge=8)
    local_size: int | None = Field(default=None, ge=8)
    """Left out: as before."""


class AdamWConfig(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): what DINO, DINOv2 and ViTs in general are trained with."""

    type: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)


class SgdConfig(Config):
    """Stochastic gradient descent with momentum."""

    type: Literal["sgd"] = "sgd"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    nesterov: bool = False


class LarsConfig(Config):
    """SGD whose rate adapts to each layer (You et al. 2017), for large batches of convnets. Defaults from SwAV's code, which
    takes it with `learning_rate: 0.3` (4.8 at a global batch of 4096) and a weight decay of 1e-6."""

    type: Literal["lars"] = "lars"
    momentum: float = Field(default=0.9, gt=0, lt=1)
    trust_coefficient: float = Field(default=0.001, gt=0)
    """A layer's rate is this times the norm of its weights over that of its gradient. Biases and norms keep the plain rate."""


OptimizerConfig = Annotated[AdamWConfig | SgdConfig | LarsConfig, Field(discriminator="type")]


class MixedConfig(Config):
    """Another selection to train on."""

    samples: AbsolutePath
    """What `windrow shard` wrote."""
    selection: AbsolutePath
    """What `windrow select` wrote of it, with --samples."""
    weight: float = Field(gt=0, lt=1)
    """Its share of the samples shown, whatever its size."""


class TrainConfig(Config):
    """Self-supervised pretraining on the selected samples."""

    operational = frozenset(
        {
            "ranks",
            "compile",
            "checkpoint_activations",
            "checkpoint_every",
            "log_every",
            "workers",
            "evaluate_every",
            "keep_encoders",
            "tensorboard",
        }
    )

    method: MethodConfig = DinoConfig()
    encoder: TrainableConfig = VitConfig()
    views: ViewsConfig = ViewsConfig()
    stages: tuple[StageConfig, ...] = ()
    """Where the sizes of the crops change in the course of the training, which begins with those of `views`. Learned positions
    are interpolated; batches, their order and all schedules stay as they are."""
    epochs: float = Field(default=100, gt=0)
    """Passes over the selected samples, repeats included."""
    global_batch_size: int = Field(default=256, ge=2)
    """Samples of one step over all ranks; the number of ranks must divide it."""
    optimizer: OptimizerConfig = AdamWConfig()
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak rate at a global batch of 256; scaled linearly with the batch."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Each layer of the encoder learns at this times the rate of the one above it. DINOv2 takes 0.9."""
    patch_embed_rate: float = Field(default=1.0, gt=0)
    """Factor of the learning rate of a ViT's patch embedding. DINOv2 takes 0.2."""
    final_learning_rate: float = Field(default=1e-6, ge=0)
    warmup_epochs: float = Field(default=10, ge=0)
    weight_decay: float = Field(default=0.04, ge=0)
    final_weight_decay: float = Field(default=0.4, ge=0)
    clip_gradient: float = Field(default=3.0, gt=0)
    """Largest global gradient norm."""
    warm_start: bool = True
    """From the second round on, start from the last round's student and teacher instead of from nothing."""
    accumulation: int = Field(default=1, ge=1)
    """Parts of a rank's samples that are in the networks one after another, for batches that do not fit at once. The loss sees
    all of them together; each more than one costs one more forward pass in all."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """Whole networks on every rank; split over all ranks; or split over the ranks of a machine and whole on every machine."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on the CPU."""
    compile: bool | None = None
    """Compile each block of the encoder, or a whole convnet, for the shapes it sees: minutes at the start, faster steps. Left
    out: on a GPU. As with the number of ranks, only rounding changes; the same setting gives the same bits again."""
    checkpoint_activations: bool = False
    """Keep only what goes into each block of the encoder and compute the rest again in the backward pass: less memory for about
    a third more time."""
    ranks: int | None = Field(default=None, ge=1)
    """Training processes. Left out: one a GPU, or one on a machine without: two would mostly wait for each other."""
    order: Literal["shuffled", "balanced", "distinct"] = "shuffled"
    """shuffled: an epoch shows each selected sample, as often as it repeats, in an order of its own. balanced: every label
    equally often. distinct: no label twice in a step, as far as that is possible."""
    mix: tuple[MixedConfig, ...] = ()
    """Other selections to learn from as well. An epoch shows as many samples as all of them have together."""
    label: str | None = None
    """Column of the training list with pseudo-labels, such as level_1: for `order`, and for methods that learn from labels."""
    max_bad_fraction: Probability = 0.01
    """Samples that cannot be read are replaced by others, up to this share of those shown; of the first 1,000 that many."""
    resident_gib: float = Field(default=1.0, ge=0)
    """Images that are all of one size and take at most so many GiB are decoded once and stay on the device of each rank."""
    workers: int | None = Field(default=None, ge=1)
    """Processes of each rank that decode samples and cut their crops. Left out: its share of the cores, at most eight."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints: what a kill can cost."""
    log_every: int = Field(default=10, ge=1)
    """Steps between progress lines."""
    evaluate_every: float | None = Field(default=None, gt=0)
    """Epochs between evaluations of the frozen encoder while it trains: weighted kNN where the source has labels, RankMe and
    spread always; before the first step and after the last one too. Left out: never. What is trained is bit-equal with and
    without."""
    keep_encoders: int = Field(default=2, ge=1)
    """Every evaluation saves its encoder. So many newest ones stay, and the best, which `best` points to."""
    tensorboard: bool = False
    """Write what is logged and evaluated as TensorBoard event files, too, into `tensorboard` beside the metrics."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.label is None and (self.order != "shuffled" or self.method.type in ("supcon", "classify")):
            raise ValueError(
                f"order {self.order} with method {self.method.type} needs pseudo-labels: set train.label to their column, "
                "such as level_1"
            )
        if sum(other.weight for other in self.mix) >= 1:
            raise ValueError(f"mix has weights {[other.weight for other in self.mix]}: leave a share to the selection itself")
        if self.mix and (self.order == "distinct" or self.method.type in ("supcon", "classify")):
            raise ValueError(
                f"order {self.order} with method {self.method.type} compares labels, and those of one selection say nothing of "
                "another's: leave out mix"
            )
        if self.views.num_global != 2:
            raise ValueError(f"views.num_global {self.views.num_global} must be 2: every method compares two global crops")
        if self.ranks and self.global_batch_size % self.ranks:
            raise ValueError(f"global_batch_size {self.global_batch_size} must be a multiple of ranks {self.ranks}")
        if self.global_batch_size % (self.accumulation * (self.ranks or 1)):
            raise ValueError(
                f"global_batch_size {self.global_batch_size} must be a multiple of ranks times accumulation {self.accumulation}"
            )
        if isinstance(self.method, IbotConfig) and not (isinstance(self.encoder, VitConfig) and self.encoder.mask_token):
            raise ValueError(f"method {self.method.type} hides patches: it needs encoder.type=vit and encoder.mask_token=true")
        if isinstance(self.method, WmseConfig) and self.global_batch_size % self.method.slice_size:
            raise ValueError(
                f"method.slice_size {self.method.slice_size} must divide global_batch_size {self.global_batch_size}: so many "
                "samples are whitened at a time"
            )
        begins = [stage.begins for stage in self.stages]
        if any(later <= earlier for earlier, later in pairwise(begins)):
            raise ValueError(f"stages follow one another; found begins {begins}")
        if isinstance(self.encoder, VitConfig):
            for number, part in enumerate((self.views, *self.stages)):
                for name in ("global_size", "local_size"):
                    if (getattr(part, name) or 0) % self.encoder.patch_size:
                        where = f"stages[{number - 1}]" if number else "views"
                        raise ValueError(
                            f"{where}.{name} {getattr(part, name)} must be a multiple of "
                            f"encoder.patch_size {self.encoder.patch_size}"
                        )
        return self

    def views_from(self) -> list[tuple[float, ViewsConfig]]:
        """The views of each stage, and after which share of the training they begin."""
        found = [(0.0, self.views)]
        for stage in self.stages:
            sizes = {"global_size": stage.global_size, "local_size": stage.local_size or found[-1][1].local_size}
            found.append((stage.begins, found[-1][1].model_copy(update=sizes)))
        return found


class EvaluateConfig(Config):
    """What frozen features are worth. Labels, where the source has class folders, are read here and nowhere else."""

    operational = frozenset({"batch_size"})

    neighbours: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(10, 20, 100, 200), min_length=1)
    """Each k of the weighted kNN classifier, capped at the number of labelled samples that vote; the best is singled out."""
    temperature: float = Field(default=0.07, gt=0)
    max_samples: int = Field(default=20_000, ge=10)
    """Labelled samples used, of the pool and of the held-out split each, at the most."""
    batch_size: int = Field(default=256, ge=1)
