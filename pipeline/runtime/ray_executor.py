"""The executor on Ray: the user's cluster where RAY_ADDRESS names one, else an embedded one that ends with this process."""

import importlib
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from curation.base.errors import UserError
from pipeline.runtime.config import Resources
from pipeline.runtime.console import Console
from pipeline.runtime.gang import Gang
from pipeline.runtime.placement import Machine, gang, spread, whole_machine
from pipeline.runtime.remote import result

T = TypeVar("T")
_PACKAGES = ("curation", "trainers", "pipeline", "launch", "configs")
_PORTIONS = 4
"""Processes that a GPU is given to, one after another, for the calls of one `map`."""
_OBJECT_STORE_BYTES = 256 * 2**20  # arrays travel as files; Ray only carries small messages


class RayExecutor:
    """Runs functions on a Ray cluster. Connects when first asked to; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._connected = False

    def __enter__(self) -> "RayExecutor":
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected:
            import ray

            ray.shutdown()

    def map(
        self, function: Callable[..., object], calls: Sequence[tuple[object, ...]], *, resources: Resources, on_gpu: bool
    ) -> Iterator[int]:
        """As `Executor.map`. Calls whose process dies are repeated, three times."""
        if not calls:
            return
        ray = self._ray()
        task = spread(self._machines(), resources, on_gpu=on_gpu)
        # Ray ends a process that had a GPU, so that its memory is free again. To begin another takes as long as a short call.
        portion = max(1, len(calls) // (_PORTIONS * task.num_at_once)) if task.num_gpus else 1
        remote = ray.remote(**task.options(), max_retries=3, num_returns="streaming")(_call_each)
        waiting = deque(range(0, len(calls), portion))
        running: dict[Any, Iterator[int]] = {}
        while waiting or running:
            while waiting and len(running) < task.num_queued:
                first = waiting.popleft()
                numbers = range(first, min(first + portion, len(calls)))
                running[remote.remote(function, calls[numbers.start : numbers.stop])] = iter(numbers)
            (stream,), _ = ray.wait(list(running), num_returns=1)
            try:
                result(ray, next(stream))
            except StopIteration:
                del running[stream]
            else:
                yield next(running[stream])

    def call(self, function: Callable[..., T], *args: object, resources: Resources, on_gpu: bool) -> T:
        """As `Executor.call`."""
        ray = self._ray()
        task = whole_machine(self._machines(), resources, on_gpu=on_gpu)
        value: T = result(ray, ray.remote(**task.options(), max_retries=3)(_call).remote(function, args))
        return value

    def ranks(
        self, function: Callable[..., Iterator[T]], num_ranks: int, *args: object, resources: Resources, on_gpu: bool
    ) -> Iterator[T]:
        """As `Executor.ranks`. Waits, and says so, while others use what the ranks need."""
        ray = self._ray()
        placement = gang(self._machines(), resources, num_ranks, on_gpu=on_gpu)
        with Gang(ray, placement, self.console) as ranks:
            yield from ranks.run(function, args)

    def num_gpus(self, resources: Resources) -> int:
        """As `Executor.num_gpus`."""
        total = int(sum(machine.gpus for machine in self._machines()))
        return total if resources.gpus is None else min(total, resources.gpus)

    def num_cpus(self) -> int:
        """CPU cores of the cluster."""
        return int(sum(machine.cpus for machine in self._machines()))

    def _machines(self) -> list[Machine]:
        """The machines that take work."""
        nodes = [node["Resources"] for node in self._ray().nodes() if node["Alive"] and node["Resources"].get("CPU")]
        return [Machine(node["CPU"], node.get("GPU", 0), node.get("memory", 0)) for node in nodes]

    def _ray(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # A task that was given no GPU sees none, so that it cannot take the memory of one that somebody else was given.
        os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "1"
        import ray

        if not self._connected:
            address = os.environ.get("RAY_ADDRESS")
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if address:
                _check_reachable(address)
                modules = [os.path.dirname(importlib.import_module(name).__file__ or "") for name in _PACKAGES]
                options |= {"address": address, "runtime_env": {"py_modules": modules}}
            else:
                # For its processes to import torch again costs each stage seconds: those of one wait for the next.
                os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "600000")
                # "local" starts a Ray of our own even where `ray start` runs another.
                options |= {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
            ray.init(**options)
            self._connected = True
        return ray


def _call(function: Callable[..., T], args: tuple[object, ...]) -> T:
    """`function(*args)`; what Ray calls must be a plain function."""
    return function(*args)


def _call_each(function: Callable[..., object], calls: Sequence[tuple[object, ...]]) -> Iterator[None]:
    """Call `function` with each of `calls`, and yield after each."""
    for call in calls:
        function(*call)
        yield


def _check_reachable(address: str) -> None:
    """Raise UserError if nobody listens at host:port; Ray itself would try for minutes."""
    if address.startswith("ray://"):
        raise UserError("RAY_ADDRESS names a Ray Client (ray://…), which cannot stream. Give host:port of the head node.")
    place = re.fullmatch(r"\[?([^/\]]+?)\]?:(\d+)", address)
    if place is None:  # "auto" and the like: Ray knows
        return
    try:
        socket.create_connection((place[1], int(place[2])), timeout=10).close()
    except OSError as error:
        raise UserError(
            f"No Ray cluster answers at RAY_ADDRESS={address!r}: {error.strerror or error}. "
            "Start it, correct the address, or unset RAY_ADDRESS to use this machine alone."
        ) from None
