"""What timm's models cost: a table of those in common use, which is read without torch, and a count of any other.

`python -m pipeline.stages.timm_costs` counts the models of the table anew, in minutes. To add a model, give it a line first:
its name, and 1 if it is to have windrow's small stem, else 0.
"""

import csv
from collections.abc import Callable
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from curation.base.files import write_atomic
from trainers.models.config import TimmConfig, TrainableConfig

if TYPE_CHECKING:
    from torch import nn

_TABLE = Path(__file__).with_suffix(".csv")


class TimmCost(NamedTuple):
    """A line of the table: the forward FLOPs of an image are a polynomial in its area A, in pixels.

    They are `fixed` + `per_pixel` A + `per_pixel_squared` A², exactly so where strides, patches and windows divide the size:
    each pixel or token costs the same in every layer, attention costs the square of the number of tokens, and what comes after
    pooling does not depend on the size.
    """

    model: str
    """Name of the architecture, without the tag of its weights."""
    small_stem: int
    """1 for a ResNet with `small_stem`, else 0."""
    dim: int
    """Feature dimension."""
    fixed: float
    per_pixel: float
    per_pixel_squared: float

    def flops(self, size: int) -> float:
        """Forward FLOPs of one image with `size` pixels a side."""
        return self.fixed + self.per_pixel * size**2 + self.per_pixel_squared * size**4


def known_cost(config: TimmConfig, size: int) -> tuple[float, int] | None:
    """Forward FLOPs of one image with `size` pixels a side, and the feature dimension; None for a model not in the table."""
    cost = _read_table().get((config.model.partition(".")[0], config.small_stem))
    return cost and (cost.flops(size), cost.dim)


def counted_cost(config: TrainableConfig, size: int) -> tuple[float, int]:
    """As `known_cost`, for any network: counted by torch, which takes seconds. Nothing of the network is allocated.

    Raises ConfigError if timm has no such model.
    """
    from trainers.models.encoders import build_backbone, without_weights

    return _count(partial(build_backbone, without_weights(config)), size)


@cache
def _read_table() -> dict[tuple[str, bool], TimmCost]:
    costs = [TimmCost(model, int(stem), int(dim), *map(float, flops)) for model, stem, dim, *flops in _lines()]
    return {(cost.model, bool(cost.small_stem)): cost for cost in costs}


def _lines() -> list[list[str]]:
    """The lines of the table as text, without comment and heading."""
    with _TABLE.open(newline="") as file:
        return list(csv.reader(file))[2:]


def _write_table() -> None:
    import timm
    import torch

    # A local version, such as +cpu, changes no count.
    text = [f"# timm {timm.__version__}, torch {torch.__version__.partition('+')[0]}", ",".join(TimmCost._fields)]
    for model, stem, *_ in _lines():
        cost = _fit(model, int(stem))
        text.append(",".join(f"{value:.15g}" if isinstance(value, float) else str(value) for value in cost))
        print(text[-1], flush=True)
    write_atomic(_TABLE, "\n".join(text) + "\n")


def _fit(model: str, small_stem: int) -> TimmCost:
    """Count a model at three sizes and solve for the polynomial through them, by divided differences."""
    sizes = (256, 512, 768) if model.startswith("swinv2") else (224, 448, 672)  # patches, strides and windows divide them
    counts = [_count(partial(_build, model, size, bool(small_stem)), size) for size in sizes]
    (x, y, z), (f, g, h) = [Fraction(size**2) for size in sizes], [flops for flops, _ in counts]
    first, second = (g - f) / (y - x), (h - g) / (z - y)
    squared = (second - first) / (z - x)
    linear = first - squared * (x + y)
    fixed = f - linear * x - squared * x**2
    return TimmCost(model, small_stem, counts[0][1], float(fixed), float(linear), float(squared))


def _build(model: str, size: int, small_stem: bool) -> "nn.Module":
    import timm

    from trainers.models.encoders import build_backbone

    if model.startswith("swin"):  # timm builds these for one size, and windrow for the model's own only
        return timm.create_model(model, num_classes=0, img_size=size)
    return build_backbone(TimmConfig(model=model, image_size=size, small_stem=small_stem))


def _count(build: Callable[[], "nn.Module"], size: int) -> tuple[int, int]:
    """FLOPs of one image with `size` pixels a side through the network that `build` makes, and the feature dimension."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        backbone = build().eval()
        with FlopCounterMode(display=False) as counter:
            features = backbone(torch.empty(1, 3, size, size))
    return counter.get_total_flops(), features.shape[1]


if __name__ == "__main__":
    _write_table()
