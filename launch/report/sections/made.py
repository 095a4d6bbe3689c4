"""How the run was made: its stages, their fingerprints, and who ran it where."""

from typing import Any

from launch.report.sections.section import Section
from launch.report.view import View
from pipeline.rounds.record import StepRecord


def context(view: View) -> dict[str, Any]:
    """`stages`: for each step how far it is, how long it took and what it made."""
    longest = max((step.seconds or 0 for step in view.run.steps), default=0) or 1
    return {"stages": [_stage(step, longest) for step in view.run.steps]}


def _stage(step: StepRecord, longest: float) -> dict[str, Any]:
    """A row of the table; `share` is of the seconds of the longest step."""
    return {
        "name": step.name,
        "made": (step.description or step.kind) if step.manifest else step.state,
        "bytes": step.num_bytes,
        "seconds": step.seconds,
        "share": (step.seconds or 0) / longest,
        "fingerprint": step.manifest.fingerprint if step.manifest else "",
    }


SECTION = Section("made", "How it was made", "sections/made.html.j2", context, is_always_shown=True)
