"""What a training leaves in its directory, by name. For all who only look, and need no torch for it."""

from pathlib import Path

WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
"""A line for each step, and for each evaluation."""
ENCODERS, BEST = "encoders", "best"
"""The encoders that were evaluated, and a link to the best of them."""
CHECKPOINTS, STATE = "checkpoints", "state.json"
"""A directory `step-…` for each; this file of it is written last."""


def whole_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in `directory`, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / STATE).exists())


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint in `directory`."""
    return max(whole_checkpoints(directory), default=None)
