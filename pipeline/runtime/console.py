"""What a run says while it works: bars on a terminal, plain lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn

_LINE_EVERY_S = 10.0


class Console:
    """Reports stages and progress on standard error. `quiet` says nothing at all."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._rich = RichConsole(stderr=True, highlight=False, quiet=quiet)
        self._is_terminal = self._rich.is_terminal

    def say(self, text: str) -> None:
        """One line."""
        if self._is_terminal:
            self._rich.print(text, markup=False)
        else:
            self._rich.print(f"{time.strftime('%H:%M:%S')} {text}", markup=False, soft_wrap=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Say that a stage begins and, if it ends well, how long it took."""
        began = time.perf_counter()
        self.say(f"{name} …")
        yield
        self.say(f"{name}: done in {duration(time.perf_counter() - began)}")

    @contextmanager
    def progress(self, label: str, total: int, unit: str, done: int = 0) -> Iterator["Meter"]:
        """A meter for work of `total` units, `done` of which were finished by an earlier run."""
        if self._is_terminal:
            columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[state]}"))
            with Progress(*columns, console=self._rich, transient=True) as bars:
                task = bars.add_task(label, total=total, completed=done, state="")
                yield Meter(self, label, total, unit, done, (bars, task))
        else:
            yield Meter(self, label, total, unit, done, None)


class Meter:
    """Counts finished work; knows the rate and the time left."""

    def __init__(
        self, console: Console, label: str, total: int, unit: str, done: int, bar: tuple[Progress, TaskID] | None
    ) -> None:
        self._console, self._label, self._total, self._unit, self._bar = console, label, total, unit, bar
        self._began = self._said = time.perf_counter()
        # Where an earlier run stopped; unknown before the first report if there is no total yet.
        self._began_at: int | None = done if total else None
        self._done = done

    def advance(self, amount: int) -> None:
        """`amount` more units are done."""
        self.move(self._done + amount, self._total)

    def move(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` units are done; `note` is shown beside the rate."""
        now = time.perf_counter()
        if self._began_at is None:
            self._began_at, self._began = done, now
        self._done, self._total = done, total
        pace = (done - self._began_at) / max(now - self._began, 1e-9)
        left = (total - done) / pace if pace > 0 else float("inf")
        shown = note or f"{pace:,.0f} {self._unit}/s"
        state = f"{done:,}/{total:,} {self._unit}, {shown}, {duration(left)} left"
        if self._bar:
            bars, task = self._bar
            bars.update(task, completed=done, total=total, state=state)
        elif now - self._said > _LINE_EVERY_S and done < total:
            self._said = now
            self._console.say(f"  {self._label}: {state}")


def duration(seconds: float) -> str:
    """A time as text: 4.0 s, 3 min 20 s, 5 h 12 min."""
    if seconds == float("inf"):
        return "unknown time"
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest} s"
    hours, minutes_left = divmod(minutes, 60)
    return f"{minutes} min {rest:02d} s" if hours == 0 else f"{hours} h {minutes_left:02d} min"


def size(num_bytes: float) -> str:
    """A number of bytes as text: 512 B, 3.1 MB, 2.0 TB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.1f} TB"
