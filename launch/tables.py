"""Tables of plan and status, as a terminal shows them."""

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 110
"""Characters a line where the output is not a terminal."""


def table(title: str, headings: dict[str, str]) -> Table:
    """An empty table; `headings` gives left or right for each column."""
    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading, side in headings.items():
        made.add_column(heading, justify="left" if side == "left" else "right")
    return made


def show(made: Table, note: str = "") -> None:
    """Print a table and a note below it."""
    console = Console()
    Console(width=None if console.is_terminal else _WIDTH).print(made)
    if note:
        console.print(note, highlight=False, soft_wrap=True)
