"""The progress reports of a training."""

from dataclasses import dataclass
from typing import Any

from trainers.engine.collapse import Health


@dataclass(frozen=True)
class TrainProgress:
    """A report of the loop, every `log_every` steps."""

    step: int
    total_steps: int
    loss: float
    images_per_second: float
    health: Health
    waiting: float
    """Share of the time since the last report that was spent waiting for samples."""
    evaluations: tuple[dict[str, Any], ...] = ()
    """Lines of `evaluations.jsonl` since the last report."""

    @property
    def finished(self) -> bool:
        """Whether this was the last step."""
        return self.step == self.total_steps
