"""What every method is made of. The methods themselves are in `trainers.methods.build`, one file each."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.models.heads import Network
from trainers.ranks import local_shard
from trainers.schedules import cosine


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
class Views:
    """One rank's samples of a step, on its device."""

    crops: list[Tensor]
    """Normalised global crops (2, B, 3, G, G), then local ones (n, B, 3, L, L) if there are any."""
    sample: Tensor
    """(B,) int64: index into the training list."""
    label: Tensor
    """(B,) int64: pseudo-label, -1 where there is none."""
    position: np.ndarray
    """(B,) int64: position in the endless stream of shown samples, the key of draws."""

    def part(self, rows: slice) -> "Views":
        """Some of the samples."""
        crops = [group[:, rows] for group in self.crops]
        return Views(crops, self.sample[rows], self.label[rows], self.position[rows])


@dataclass(frozen=True)
class StepOutput:
    """What one step found on this rank."""

    loss: Tensor
    """A scalar with gradient. Its mean over ranks is the loss of the step."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """More scalars to log, without gradient, averaged over ranks by the loop."""


class Method(nn.Module, ABC):
    """A module that holds everything a method trains or remembers, so its state dict is its checkpoint.

    A step is three calls, because only the loss needs all samples of a rank at once: `targets` and the `student` may run on
    parts of them, one after another (`trainers.engine.accumulation`). Parameters outside the networks `student` and `teacher`
    are used by the loss only and are replicated on every rank.
    """

    student: Network

    @property
    def encoder(self) -> nn.Module:
        """The backbone to evaluate and export."""
        return self.student.backbone

    def begin(self, num_samples: int, stream: int) -> None:
        """Called once before training on a list of `num_samples`, with the random key of the training."""

    def before_first_step(self, epoch: Callable[[], Iterator[Views]]) -> None:
        """Called before the first step of a training that is not a continued one; `epoch()` shows every sample."""

    def before_epoch(self, epoch: int) -> None:
        """Called before the first step of every epoch but the first."""

    def inputs(self, views: Views, clock: Clock) -> tuple[Any, ...]:
        """What the student is called with."""
        return (views.crops,)

    def targets(self, views: Views, clock: Clock) -> tuple[Tensor, ...]:
        """What a teacher says of the global crops, each with the samples first, without gradient."""
        return ()

    @abstractmethod
    def loss(self, outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...], views: Views, clock: Clock) -> StepOutput:
        """From what the student (and the teacher) made of all samples of this rank."""

    def prototypes_frozen(self, clock: Clock) -> bool:
        """Whether this step must not change the prototypes: the parameters outside of the student."""
        return False

    def after_step(self, clock: Clock, good: Tensor) -> None:
        """Called after the optimizer's update; `good` is 1.0, or 0.0 if that was skipped and nothing may be remembered."""


class EmaTeacherMethod(Method):
    """A method whose teacher follows the student by exponential moving average, and is what is kept in the end."""

    teacher: Network
    config: Any
    """With the `momentum` to begin with."""

    @property
    def encoder(self) -> nn.Module:
        return self.teacher.backbone

    @torch.no_grad()
    def targets(self, views: Views, clock: Clock) -> tuple[Tensor, ...]:
        return self.teacher(views.crops[:1])  # type: ignore[no-any-return]

    def momentum(self, clock: Clock) -> float:
        """Of the teacher, at this step: rises to 1 along half a cosine (BYOL, DINO)."""
        return cosine(clock.step, clock.total_steps, self.config.momentum, 1.0)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor) -> None:
        follow(self.teacher, self.student, (1 - self.momentum(clock)) * good)


def follow(teacher: nn.Module, student: nn.Module, share: Tensor) -> None:
    """Move the teacher's parameters by a `share` (a scalar on the device) of the way to the student's of the same names."""
    own = dict(teacher.named_parameters())
    others = dict(student.named_parameters())
    mine = [local_shard(parameter) for parameter in own.values()]
    theirs = [local_shard(others[name]) for name in own]
    torch._foreach_mul_(mine, 1 - share)
    torch._foreach_add_(mine, torch._foreach_mul(theirs, share))


def copy_of(student: Network, make: Callable[[], Network]) -> Network:
    """A teacher that starts as the student, without its predictor if it has one."""
    teacher = make()
    teacher.predictor = None
    teacher.load_state_dict({name: value for name, value in student.state_dict().items() if not name.startswith("predictor.")})
    return teacher.requires_grad_(False)
