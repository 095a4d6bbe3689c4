"""Settings of a training: optimizer, schedules, stages, order of the samples, parallelism."""

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, model_validator

from curation.base.config import Config
from trainers.data.config import OrderName, Probability, ViewsConfig
from trainers.methods.config import DinoConfig, IbotConfig, MethodConfig, WmseConfig
from trainers.models.config import AbsolutePath, TrainableConfig, VitConfig


class StageConfig(Config):
    """A stretch of a training, up to the next one, with its own crop sizes: for example the end at a higher resolution."""

    begins: float = Field(gt=0, lt=1)
    """Share of the training's steps after which it begins."""
    global_size: int = Field(ge=8)
    """Side of a global crop, in pixels."""
    local_size: int | None = Field(default=None, ge=8)
    """Side of a local crop, in pixels. Default: as before."""


class AdamWConfig(Config):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019): the optimizer of DINO, DINOv2 and ViTs in general."""

    type: Literal["adamw"] = "adamw"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square."""


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
    """Factor of a layer's rate: the rate is this times the norm of the layer's weights over that of its gradient. Biases and
    norms keep the plain rate."""


OptimizerConfig = Annotated[AdamWConfig | SgdConfig | LarsConfig, Field(discriminator="type")]


class MixedConfig(Config):
    """Another selection to train on."""

    samples: AbsolutePath
    """Output directory of `windrow shard`."""
    selection: AbsolutePath
    """Output directory of `windrow select --samples` for these samples."""
    weight: float = Field(gt=0, lt=1)
    """Share of the shown samples that come from this selection, whatever its size."""


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
    """Changes of the crop sizes in the course of the training, which begins with the sizes of `views`. Learned positions are
    interpolated; batches, their order and all schedules are unaffected."""
    epochs: float = Field(default=100, gt=0)
    """Number of passes over the selected samples, repeats included."""
    global_batch_size: int = Field(default=256, ge=2)
    """Samples per step over all ranks; must be a multiple of the number of ranks."""
    optimizer: OptimizerConfig = AdamWConfig()
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate at a global batch of 256; scaled linearly with the batch."""
    layer_decay: float = Field(default=1.0, gt=0, le=1)
    """Factor between the learning rate of a layer of the encoder and that of the layer above it. DINOv2 takes 0.9."""
    patch_embed_rate: float = Field(default=1.0, gt=0)
    """Factor of the learning rate of a ViT's patch embedding. DINOv2 takes 0.2."""
    final_learning_rate: float = Field(default=1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = Field(default=10, ge=0)
    """Epochs in which the learning rate rises linearly from 0 to its peak; at most half of the training."""
    weight_decay: float = Field(default=0.04, ge=0)
    """Weight decay at the start; follows a cosine to `final_weight_decay`."""
    final_weight_decay: float = Field(default=0.4, ge=0)
    clip_gradient: float = Field(default=3.0, gt=0)
    """Largest global gradient norm."""
    warm_start: bool = True
    """Whether a round after the first starts from the last round's student and teacher instead of from random weights."""
    accumulation: int = Field(default=1, ge=1)
    """Number of pieces in which a rank's samples pass through the networks one after another, for batches that do not fit in
    memory at once. The loss still sees all samples together; with more than one piece, every sample takes one more forward
    pass."""
    parallel: Literal["ddp", "fsdp", "hsdp"] = "ddp"
    """ddp: whole networks on every rank. fsdp: split over all ranks. hsdp: split over the ranks of a machine, and replicated
    on every machine."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 on a GPU, fp32 on the CPU."""
    compile: bool | None = None
    """Whether to compile each block of the encoder, or a whole convnet: minutes at the start, faster steps. Default: only on a
    GPU. Changes rounding only, as the number of ranks does; the same setting gives the same bits again."""
    checkpoint_activations: bool = False
    """Whether to keep only the inputs of the encoder's blocks and compute the rest again in the backward pass: less memory for
    about a third more time."""
    ranks: int | None = Field(default=None, ge=1)
    """Number of training processes. Default: one per GPU, or a single one without GPUs."""
    order: OrderName = "shuffled"
    """shuffled: an epoch shows each selected sample as often as it repeats, in a random order. balanced: every label equally
    often. distinct: no label twice in a step, as far as that is possible."""
    mix: tuple[MixedConfig, ...] = ()
    """Other selections to train on as well. An epoch shows as many samples as all of them have together."""
    label: str | None = None
    """Column of the training list with pseudo-labels, such as level_1: for `order`, and for methods that learn from labels."""
    max_bad_fraction: Probability = 0.01
    """Largest share of the shown samples that may be unreadable; each is replaced by another sample. Within the first 1,000
    shown, this share of 1,000 is allowed."""
    resident_gib: float = Field(default=1.0, ge=0)
    """Largest size in GiB of a decoded data set that is kept whole on the device of each rank; only for images that all have
    the same size."""
    workers: int | None = Field(default=None, ge=1)
    """Processes per rank that decode samples and cut their crops. Default: the rank's share of the cores, at most eight."""
    checkpoint_every: int = Field(default=200, ge=1)
    """Steps between checkpoints: the largest number of steps that a kill can cost."""
    log_every: int = Field(default=10, ge=1)
    """Steps between progress lines."""
    evaluate_every: float | None = Field(default=None, gt=0)
    """Epochs between evaluations of the frozen encoder during training: weighted kNN where the source has labels, RankMe and
    spread always; also before the first and after the last step. Default: never. The trained weights are the same, bit for
    bit, with and without."""
    keep_encoders: int = Field(default=2, ge=1)
    """Number of the newest evaluated encoders that are kept, in addition to the best one, which the link `best` leads to."""
    tensorboard: bool = False
    """Whether to also write metrics and evaluations as TensorBoard event files, into `tensorboard` next to the metrics."""

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
            for number, sizes in enumerate((self.views, *self.stages)):
                for name in ("global_size", "local_size"):
                    if (getattr(sizes, name) or 0) % self.encoder.patch_size:
                        where = f"stages[{number - 1}]" if number else "views"
                        raise ValueError(
                            f"{where}.{name} {getattr(sizes, name)} must be a multiple of "
                            f"encoder.patch_size {self.encoder.patch_size}"
                        )
        return self

    def views_from(self) -> list[tuple[float, ViewsConfig]]:
        """The views of each stage with the share of the training's steps after which they begin: [(0, views), …]."""
        stages = [(0.0, self.views)]
        for stage in self.stages:
            sizes = {"global_size": stage.global_size, "local_size": stage.local_size or stages[-1][1].local_size}
            stages.append((stage.begins, stages[-1][1].model_copy(update=sizes)))
        return stages
