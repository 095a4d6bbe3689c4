"""What a training tells on its way."""

from dataclasses import dataclass
from typing import Any

from trainers.engine.collapse import Health


@dataclass(frozen=True)
class TrainProgress:
    """What the loop reports every `log_every` steps."""

    step: int
    total_steps: int
    loss: float
    images_per_second: float
    health: Health
    waiting: float
    """The share of the time since the last report that went into waiting for samples."""
    evaluations: tuple[dict[str, Any], ...] = ()
    """Lines of `evaluations.jsonl` since the last report."""

    @property
    def finished(self) -> bool:
        return self.step == self.total_steps
