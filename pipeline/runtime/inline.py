"""The executor that runs everything in this process: breakpoints work, and nothing has to start."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from curation.base.errors import ConfigError
from pipeline.runtime.config import Resources
from pipeline.runtime.console import Console

T = TypeVar("T")


class InlineExecutor:
    """Calls functions one after another. Each has as many threads as Ray would give it, so that results are the same bits."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def __enter__(self) -> "InlineExecutor":
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(
        self,
        function: Callable[..., object],
        calls: Sequence[tuple[object, ...]],
        *,
        resources: Resources,
        on_gpu: bool,
    ) -> Iterator[int]:
        num_threads = _cores() if on_gpu and self.num_gpus(resources) else 1
        for index, call in enumerate(calls):
            with _threads(num_threads):
                function(*call)
            yield index

    def call(self, function: Callable[..., T], *args: object, resources: Resources, on_gpu: bool) -> T:  # noqa: ARG002
        with _threads(_cores()):
            return function(*args)

    def ranks(
        self,
        function: Callable[..., Iterator[T]],
        num_ranks: int,
        *args: object,
        resources: Resources,  # noqa: ARG002
        on_gpu: bool,  # noqa: ARG002
    ) -> Iterator[T]:
        if num_ranks > 1:
            raise ConfigError(
                f"{num_ranks} ranks were asked for, and with --inline there is one process. Set ranks or workers to 1 "
                "(train.ranks=1, cluster.workers=1), or leave out --inline; results do not depend on their number."
            )
        with _threads(_cores()):
            yield from function(*args)

    def num_gpus(self, resources: Resources) -> int:
        """One at the most: one process uses one."""
        if resources.gpus == 0:
            return 0
        import torch

        return min(1, torch.cuda.device_count())


def _cores() -> int:
    return len(os.sched_getaffinity(0))


@contextmanager
def _threads(num: int) -> Iterator[None]:
    """Libraries compute on `num` threads, also those that are loaded inside."""
    from threadpoolctl import threadpool_limits

    variable = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(num)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(num)
    try:
        with threadpool_limits(num):
            yield
    finally:
        if variable is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = variable
