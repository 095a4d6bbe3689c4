"""Self-supervised methods, one file each.

A method is a module that holds everything it trains or remembers, so its state dict is its checkpoint. To add one: write
its file, its config in `trainers.config`, and its line in `build_method`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from trainers.config import DinoConfig, SwavConfig
from trainers.heads import MultiCrop


@dataclass(frozen=True)
class Clock:
    """Where training stands. Schedules are functions of it."""

    step: int
    total_steps: int
    steps_per_epoch: float

    @property
    def epoch(self) -> float:
        return self.step / self.steps_per_epoch


@dataclass(frozen=True)
class StepOutput:
    """What one step found on this rank."""

    loss: Tensor
    """A scalar with gradient: the mean over this rank's samples."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """More scalars to log, without gradient, averaged over ranks by the loop."""


class Method(Protocol):
    """What the train loop asks of a method. Every implementation is an `nn.Module`."""

    student: MultiCrop
    """What is optimised; the loop wraps it for data parallelism and passes the wrapper to `step`."""

    def step(self, student: Callable[[list[Tensor]], Tensor], crops: list[Tensor], clock: Clock) -> StepOutput:
        """The loss of one batch: `crops` are normalised global (2, B, 3, G, G) and local (n, B, 3, L, L) crops."""
        ...

    def frozen(self, clock: Clock) -> Iterable[nn.Parameter]:
        """Parameters of the student that this step must not change."""
        ...

    def after_step(self, clock: Clock) -> None:
        """Called after the optimizer's update."""
        ...

    @property
    def encoder(self) -> nn.Module:
        """The backbone to evaluate and export."""
        ...


def build_method(config: DinoConfig | SwavConfig, backbone: Callable[[], nn.Module]) -> nn.Module:
    """The method `config` names; `backbone()` makes a new encoder network with `num_features`."""
    from trainers.methods.dino import Dino
    from trainers.methods.swav import Swav

    match config:
        case DinoConfig():
            return Dino(config, backbone)
        case SwavConfig():
            return Swav(config, backbone)
