"""Names of the files in the output directory of a training. Imports no torch, for programs that only read them."""

from pathlib import Path

WEIGHTS, DESCRIPTION = "encoder.safetensors", "encoder.json"
"""The weights of an encoder, and its configuration."""
METRICS, EVALUATIONS = "metrics.jsonl", "evaluations.jsonl"
"""One line per step, and one per evaluation."""
ENCODERS, BEST = "encoders", "best"
"""The evaluated encoders, a directory `step-…` each, and a link to the best of them."""
CHECKPOINTS, STATE = "checkpoints", "state.json"
"""The checkpoints, a directory `step-…` each, and the file in a checkpoint that is written last."""


def complete_checkpoints(directory: Path) -> list[Path]:
    """The complete checkpoints in `directory`, oldest first."""
    return sorted(path for path in directory.glob("step-*") if (path / STATE).exists())


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest complete checkpoint in `directory`; None if there is none."""
    return max(complete_checkpoints(directory), default=None)
