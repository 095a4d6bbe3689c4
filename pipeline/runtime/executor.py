"""The executor: runs functions elsewhere, or here."""

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from pipeline.runtime.config import Resources
from pipeline.runtime.console import Console

T = TypeVar("T")


class Executor(Protocol):
    """The seam between stages and what runs them. `on_gpu` asks for GPUs where there are some and `resources` allow them."""

    console: Console

    def map(
        self, function: Callable[..., object], calls: Sequence[tuple[object, ...]], *, resources: Resources, on_gpu: bool
    ) -> Iterator[int]:
        """Call `function(*call)` for each of `calls`, many at once; yields the index of each call when it has ended.

        An error of the function's own ends the work.
        """
        ...

    def call(self, function: Callable[..., T], *args: object, resources: Resources, on_gpu: bool) -> T:
        """Call `function(*args)` once, with all cores of a machine, and a GPU if there is one."""
        ...

    def ranks(
        self, function: Callable[..., Iterator[T]], num_ranks: int, *args: object, resources: Resources, on_gpu: bool
    ) -> Iterator[T]:
        """Run the generator `function(*args)` on each of `num_ranks` processes of one torch process group.

        All of them are placed together or not at all. Yields what rank 0 yields. If one rank fails, all end and its error is
        raised.
        """
        ...

    def num_gpus(self, resources: Resources) -> int:
        """GPUs that a stage with these resources may use."""
        ...


def fixed_number_of_ranks(asked: int | None, executor: Executor, resources: Resources) -> int:
    """The number of ranks: as asked, else one for each GPU, else one."""
    return asked or executor.num_gpus(resources) or 1
