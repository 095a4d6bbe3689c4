"""Encoders: networks from uint8 images to one feature vector each, and the directory they are saved to."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from curation.base.errors import ConfigError, DataError
from curation.base.files import write_atomic
from trainers.models.config import EncoderConfig, PixelsConfig, TimmConfig, TrainableConfig, VitConfig
from trainers.models.pretrained import load_weights
from trainers.models.vit import VisionTransformer
from trainers.output_files import DESCRIPTION, WEIGHTS


class PixelComponents(nn.Module):
    """A linear map to the principal components of the pixels.

    Components are about the origin, not about the mean: embeddings are compared by angle, and around the mean the densest
    class would be spread over all directions.
    """

    components: Tensor

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("components", torch.zeros(dim, inputs))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, S, S) to (B, D)."""
        return F.linear(images.flatten(1), self.components)

    @classmethod
    def fit(cls, images: Tensor, dim: int) -> "PixelComponents":
        """Fit to normalised images (N, 3, S, S); fewer components if there are fewer pixels or images than `dim`."""
        vectors = torch.linalg.svd(images.flatten(1).double(), full_matrices=False)[2][:dim]
        # The sign of a singular vector is arbitrary; fix it so that every machine agrees.
        vectors = vectors * vectors.gather(1, vectors.abs().argmax(1, keepdim=True)).sign()
        fitted = cls(vectors.shape[1], len(vectors))
        fitted.components.copy_(vectors)
        return fitted


class Encoder(nn.Module):
    """A backbone with the normalisation it was trained with: uint8 images to features."""

    def __init__(self, config: PixelsConfig | VitConfig | TimmConfig, backbone: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone
        self.inputs = InputRange.of(backbone)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, S, S) uint8 to features (B, D) float32."""
        return self.backbone(self.inputs.normalize(images)).float()

    def save(self, directory: Path) -> None:
        """Write `encoder.safetensors` and `encoder.json`."""
        export(self.config, self.backbone.state_dict(), directory)

    @classmethod
    def load(cls, directory: Path) -> "Encoder":
        """Read what `save` wrote. Raises DataError if a file is missing or they do not fit together."""
        try:
            text = (directory / DESCRIPTION).read_text()
            config: EncoderConfig = TypeAdapter(EncoderConfig).validate_json(text)
            state = load_file(directory / WEIGHTS)
            if isinstance(config, PixelsConfig):
                dim, inputs = state["components"].shape
                backbone: nn.Module = PixelComponents(inputs, dim)
            else:
                config = without_weights(config)
                backbone = build_backbone(config)
            backbone.load_state_dict(state)
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise DataError(
                f"{directory} holds no usable encoder: expected {DESCRIPTION} and {WEIGHTS} that fit together. "
                f"Point at the output of `windrow train` or `windrow embed`. ({error})"
            ) from error
        return cls(config, backbone).eval()


def export(config: PixelsConfig | VitConfig | TimmConfig, weights: dict[str, Tensor], directory: Path) -> None:
    """Write the `weights` of a backbone as `encoder.safetensors`, with timm's names, and its configuration as `encoder.json`.

    A mask token is left out, as timm's models have none, and so is the file that the encoder started from.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    description = (config if isinstance(config, PixelsConfig) else without_weights(config)).model_dump(mode="json")
    if isinstance(config, VitConfig):
        state.pop("mask_token", None)
        description["mask_token"] = False
    write_atomic(directory / WEIGHTS, save(state))
    write_atomic(directory / DESCRIPTION, json.dumps(description, indent=1) + "\n")


@dataclass(frozen=True)
class InputRange:
    """The normalisation that a backbone expects: mean and deviation of each channel, for values in [0, 1]."""

    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    @classmethod
    def of(cls, backbone: nn.Module) -> "InputRange":
        """The range in a VisionTransformer's configuration, or what timm states for its model; 0.5 for any other network."""
        if isinstance(backbone, VisionTransformer):
            return cls(backbone.config.mean, backbone.config.std)
        stated = getattr(backbone, "pretrained_cfg", None)
        return cls(tuple(stated["mean"]), tuple(stated["std"])) if stated else cls()

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images (B, 3, S, S), uint8 or float in [0, 1], to float."""
        scaled = images.float() / 255 if images.dtype == torch.uint8 else images
        shape = (1, len(self.mean), 1, 1)
        mean, std = scaled.new_tensor(self.mean).view(shape), scaled.new_tensor(self.std).view(shape)
        return (scaled - mean) / std


def without_weights(config: TrainableConfig) -> TrainableConfig:
    """The same configuration without weights to start from, so that nothing is read or downloaded to build the network."""
    return config.model_copy(update={"weights": None} | ({"pretrained": False} if isinstance(config, TimmConfig) else {}))


def build_backbone(config: TrainableConfig) -> nn.Module:
    """A network from images (B, 3, S, S) of any crop size to features (B, D), with `num_features` = D.

    Its weights are those that `config` names, else random from torch's default generator. Raises DataError if they do not fit.
    """
    backbone = VisionTransformer(config) if isinstance(config, VitConfig) else _timm_backbone(config)
    if config.weights:
        load_weights(backbone, config.weights)
    return backbone


def _timm_backbone(config: TimmConfig) -> nn.Module:
    """A model of timm. Raises ConfigError if timm has none of that name, or it cannot have a small stem."""
    import timm

    if not timm.is_model(config.model):
        close = ", ".join(timm.list_models(f"*{config.model.split('_')[0]}*")[:5])
        raise ConfigError(
            f"timm has no model named {config.model!r}. "
            + (f"Some that look like it: {close}. " if close else "")
            + "`python -c 'import timm; print(timm.list_models())'` lists all."
        )
    options: dict[str, object] = {"num_classes": 0, "pretrained": config.pretrained}
    if timm.models.is_model_in_modules(config.model, {"vision_transformer", "deit", "eva"}):
        options |= {"img_size": config.image_size, "dynamic_img_size": True}
    backbone = timm.create_model(config.model, **options)
    if config.small_stem:
        if not isinstance(backbone, timm.models.ResNet):
            raise ConfigError(
                f"encoder.small_stem is for timm's ResNets, such as resnet18; {config.model} is not one. Leave it out."
            )
        backbone.conv1 = nn.Conv2d(3, backbone.bn1.num_features, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(backbone.conv1.weight, mode="fan_out", nonlinearity="relu")
        backbone.maxpool = nn.Identity()
    return backbone


def recompute_activations(backbone: nn.Module) -> None:
    """Make a backbone keep only the inputs of its blocks and recompute the rest. Raises ConfigError if it cannot."""
    if isinstance(backbone, VisionTransformer):
        backbone.checkpoints_blocks = True
        return
    try:
        backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    except (AttributeError, AssertionError) as error:  # some of timm's models refuse by an assertion
        raise ConfigError(
            f"A {type(backbone).__name__} cannot recompute activations. Set train.checkpoint_activations=false, and "
            "train.accumulation to more than 1 if memory is short, or choose another encoder."
        ) from error


def build_encoder(config: PixelsConfig | VitConfig | TimmConfig, sample: np.ndarray) -> Encoder:
    """An encoder to start from; pixel components are fitted to `sample` (N, 3, S, S) uint8."""
    if isinstance(config, PixelsConfig):
        return Encoder(config, PixelComponents.fit(InputRange().normalize(torch.from_numpy(sample)), config.dim)).eval()
    return Encoder(config, build_backbone(config)).eval()
