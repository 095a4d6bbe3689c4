"""The contract of a section: what it shows, and the template that shows it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from launch.report.view import View


@dataclass(frozen=True)
class Section:
    """One part of the page: a module that makes the context, and a template of the same name beside it."""

    anchor: str
    """What links to the section name."""
    title: str
    """In the navigation."""
    template: str
    context: Callable[[View], dict[str, Any]]
    """What the template is given. Shows what can be read, and leaves a note on the page for the rest (`View.attempt`)."""
    is_always_shown: bool = False
    """Also before anything is finished."""
