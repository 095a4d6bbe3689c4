"""The interface and the parts that all methods have in common; each method is one file beside this one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainers.models.heads import Encoded, Network
from trainers.ranks import local_shard
from trainers.schedules import cosine


@dataclass(frozen=True)
class Clock:
    """The progress of a training. Schedules are functions of it."""

    step: int
    total_steps: int
    steps_per_epoch: float

    @property
    def epoch(self) -> float:
        """Epochs so far, with their fraction."""
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
    """(B,) int64: position in the endless stream of shown samples, the key of random draws."""

    def rows(self, rows: slice) -> "Views":
        """The views of some of the samples."""
        crops = [group[:, rows] for group in self.crops]
        return Views(crops, self.sample[rows], self.label[rows], self.position[rows])


@dataclass(frozen=True)
class StepOutput:
    """The result of one step's loss on this rank."""

    loss: Tensor
    """A scalar with gradient. Its mean over ranks is the loss of the step."""
    scalars: dict[str, Tensor] = field(default_factory=dict)
    """Further scalars to log, without gradient, averaged over ranks by the loop."""
    remember: dict[str, Tensor] = field(default_factory=dict)
    """Tensors without gradient that `Method.after_step` needs to update what the method remembers."""


class Method(nn.Module, ABC):
    """A module that holds everything a method trains or remembers, so its state dict is its checkpoint.

    A step is three calls, because only the loss needs all samples of a rank at once: `targets` and the `student` may run on
    pieces of the batch, one after another (`trainers.engine.accumulation`). Parameters outside the networks `student` and
    `teacher` are used by the loss only and are replicated on every rank.
    """

    student: Network

    @property
    def encoder(self) -> nn.Module:
        """The backbone to evaluate and export."""
        return self.student.backbone

    def begin(self, num_samples: int, rng_key: int) -> None:
        """Prepare to train on a list of `num_samples`, with the random key `rng_key`. Called once, before training."""

    def before_first_step(self, epoch: Callable[[], Iterator[Views]]) -> None:
        """Called before the first step of a training that is not resumed; `epoch()` iterates over every sample."""

    def before_epoch(self, epoch: int) -> None:
        """Called before the first step of every epoch but the first."""

    def inputs(self, views: Views, clock: Clock) -> tuple[Any, ...]:
        """The arguments that the student is called with."""
        return (views.crops,)

    def targets(self, views: Views, clock: Clock) -> Encoded:
        """The outputs of a teacher for the global crops, without gradient; (B, 0) for methods without a teacher."""
        return Encoded(views.crops[0].new_empty(len(views.sample), 0))

    @abstractmethod
    def loss(self, outputs: Encoded, targets: Encoded, views: Views, clock: Clock) -> StepOutput:
        """The loss of the student's `outputs` and the teacher's `targets` for all samples of this rank."""

    def prototypes_frozen(self, clock: Clock) -> bool:
        """Whether this step must not change the prototypes: the parameters outside of the student."""
        return False

    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        """Called after the optimizer's update with what `loss` returned in `remember`.

        `good` is 1.0, or 0.0 if the update was skipped, after which the method must not change either.
        """


class EmaTeacherMethod(Method):
    """A method with a teacher, the exponential moving average of the student, whose backbone is exported."""

    teacher: Network
    config: Any
    """Settings with the initial `momentum`."""

    @property
    def encoder(self) -> nn.Module:
        return self.teacher.backbone

    @torch.no_grad()
    def targets(self, views: Views, clock: Clock) -> Encoded:
        return self.teacher(views.crops[:1])  # type: ignore[no-any-return]

    def momentum(self, clock: Clock) -> float:
        """The teacher's momentum at this step: rises to 1 along half a cosine (BYOL, DINO)."""
        return cosine(clock.step, clock.total_steps, self.config.momentum, 1.0)

    @torch.no_grad()
    def after_step(self, clock: Clock, good: Tensor, remember: dict[str, Tensor]) -> None:
        ema_update(self.teacher, self.student, (1 - self.momentum(clock)) * good)


def ema_update(teacher: nn.Module, student: nn.Module, weight: Tensor) -> None:
    """Set the teacher's parameters to (1 - weight) teacher + weight student, matched by name; `weight` is a scalar tensor."""
    teacher_parameters = dict(teacher.named_parameters())
    student_parameters = dict(student.named_parameters())
    averages = [local_shard(parameter) for parameter in teacher_parameters.values()]
    values = [local_shard(student_parameters[name]) for name in teacher_parameters]
    torch._foreach_mul_(averages, 1 - weight)
    torch._foreach_add_(averages, torch._foreach_mul(values, weight))


def copy_of(student: Network, make: Callable[[], Network]) -> Network:
    """A teacher that starts as the student, without its predictor if it has one, and takes no gradient."""
    teacher = make()
    teacher.predictor = None
    teacher.load_state_dict({name: value for name, value in student.state_dict().items() if not name.startswith("predictor.")})
    return teacher.requires_grad_(False)
