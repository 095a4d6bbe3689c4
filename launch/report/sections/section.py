"""The contract of a section: what it shows, and the template that shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch.report.view import View


@dataclass(frozen=True)
class Section:
    """One part of the page, with a template beside its module that is named like it."""

    anchor: str
    title: str
    template: str
    context: Callable[[View], dict[str, Any]]
    """What the template is given. Reads what can be read, and leaves notes for the rest (`View.attempt`)."""
    is_always_shown: bool = False
    """Also before anything is finished."""
