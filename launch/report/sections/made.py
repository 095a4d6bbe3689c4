"""How the run was made: its stages, their fingerprints, and who ran it where."""

from typing import Any

from launch.report.sections.section import Section
from launch.report.view import View


def context(view: View) -> dict[str, Any]:
    """`stages`: for each step what it is, how far, how long it took and what it made."""
    longest = max((step.seconds or 0 for step in view.run.steps), default=0) or 1
    stages = [
        {
            "name": step.name,
            "state": step.state,
            "seconds": step.seconds,
            "share": (step.seconds or 0) / longest,
            "made": step.description,
            "bytes": step.num_bytes,
            "fingerprint": step.manifest.fingerprint if step.manifest else "",
        }
        for step in view.run.steps
    ]
    return {"stages": stages}


SECTION = Section("made", "How it was made", "sections/made.html.j2", context, is_always_shown=True)
