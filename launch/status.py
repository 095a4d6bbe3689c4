"""How far a run is."""

from launch.tables import show, table
from pipeline.rounds.config import RunConfig
from pipeline.rounds.record import RunRecord
from pipeline.runtime.console import duration, size


def show_status(config: RunConfig) -> None:
    """Print one line a step: its state, its bytes, how long it took and what it made."""
    record = RunRecord.read(config.run_dir, config)
    headings = {"step": "left", "state": "left", "bytes": "right", "time": "right", "result": "left"}
    lines = table(f"Status of {config.run_dir}", headings)
    for step in record.steps:
        num_bytes = size(step.num_bytes) if step.num_bytes is not None else ""
        took = duration(step.seconds) if step.manifest and step.seconds is not None else ""
        lines.add_row(step.name, step.state_in(config.run_dir), num_bytes, took, step.description)
    show(lines)
