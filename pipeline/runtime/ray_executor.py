"""Ray: the user's cluster where RAY_ADDRESS names one, else an embedded one that lives as long as this process."""

import importlib
import math
import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from curation.base.errors import UserError
from pipeline.runtime.console import Console

T = TypeVar("T")
_PACKAGES = ("curation", "trainers", "pipeline", "launch", "configs")
_PORTIONS = 4
"""Processes that a GPU is given to, one after another, for the calls of one `map`."""
_OBJECT_STORE_BYTES = 256 * 2**20  # arrays travel as files; Ray only carries small messages


class Runtime:
    """Runs functions elsewhere. Connects when first asked to; use as a context manager."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._connected = False

    def __enter__(self) -> "Runtime":
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected:
            import ray

            ray.shutdown()

    def _ray(self) -> Any:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        if not self._connected:
            address = os.environ.get("RAY_ADDRESS")
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
            if address:
                _knock(address)
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

    def resources(self) -> dict[str, float]:
        """What the cluster has: CPU, GPU, memory, …"""
        found: dict[str, float] = self._ray().cluster_resources()
        return found

    def map(
        self,
        function: Callable[..., object],
        calls: Sequence[tuple[object, ...]],
        *,
        weights: Sequence[int],
        done: int,
        label: str,
        unit: str,
        gpu: bool,
    ) -> None:
        """Call `function(*call)` for each of `calls`, as many at once as there are CPUs; or GPUs, with their share of the CPUs.

        Calls whose process dies are repeated, three times; an error of the function's own ends the work. `weights` says how
        many units each call is worth and `done` how many were finished before.
        """
        if not calls:
            return
        ray = self._ray()
        machines = self._machines(on_gpu=gpu)
        on_gpu = gpu and "GPU" in machines[0]
        slots = int(sum(machine["GPU" if on_gpu else "CPU"] for machine in machines))
        share = max(1, math.floor(min(machine["CPU"] / machine["GPU"] for machine in machines))) if on_gpu else 1
        # Ray ends a process that had a GPU, so that its memory is free again. To begin another takes as long as a short call.
        together = max(1, len(calls) // (_PORTIONS * slots)) if on_gpu else 1
        remote = ray.remote(num_cpus=share, num_gpus=1 if on_gpu else 0, max_retries=3, num_returns="streaming")(_each)
        waiting = deque(range(0, len(calls), together))
        running: dict[Any, Iterator[int]] = {}
        with self.console.progress(label, done + sum(weights), unit, done) as meter:
            while waiting or running:
                while waiting and len(running) < 2 * slots:
                    portion = slice(first := waiting.popleft(), first + together)
                    running[remote.remote(function, calls[portion])] = iter(weights[portion])
                ready, _ = ray.wait(list(running), num_returns=1)
                try:
                    _get(ray, next(ready[0]))
                except StopIteration:
                    del running[ready[0]]
                else:
                    meter.advance(next(running[ready[0]]))

    def call(self, function: Callable[..., T], *args: object, gpu: bool) -> T:
        """Call `function(*args)` once, with all CPUs of a machine to itself, and a GPU if there is one."""
        ray = self._ray()
        machines = self._machines(on_gpu=gpu)
        on_gpu = gpu and "GPU" in machines[0]
        cpus = max(machine["CPU"] for machine in machines)
        remote = ray.remote(num_cpus=cpus, num_gpus=1 if on_gpu else 0, max_retries=3)(function)
        result: T = _get(ray, remote.remote(*args))
        return result

    def _machines(self, on_gpu: bool) -> list[dict[str, float]]:
        """What each machine that takes work has; of a cluster with GPUs, if wished, only the machines with them."""
        nodes = [node["Resources"] for node in self._ray().nodes() if node["Alive"] and node["Resources"].get("CPU")]
        return ([node for node in nodes if "GPU" in node] if on_gpu else []) or nodes

    def ranks(self, function: Callable[..., Iterator[T]], num_ranks: int, *args: object, gpu: bool) -> Iterator[T]:
        """Run the generator `function(*args)` on each of `num_ranks` processes of one torch process group.

        Yields what rank 0 yields. If one rank fails, all end and its error is raised.
        """
        ray = self._ray()
        resources = self.resources()
        on_gpu = gpu and resources.get("GPU", 0) >= num_ranks
        # Ranks share the cores evenly; Ray tells each how many threads that makes.
        machines = self._machines(on_gpu)
        share = min(machine["CPU"] for machine in machines) / math.ceil(num_ranks / len(machines))
        share = math.floor(share) if share > 1 else share
        actor = ray.remote(num_cpus=share, num_gpus=1 if on_gpu else 0)(_Rank)
        actors = [actor.remote() for _ in range(num_ranks)]
        try:
            # Ranks of a machine follow one another, as torch expects of groups within machines.
            nodes: list[str] = _get(ray, [a.node.remote() for a in actors])
            by_node = sorted(zip(nodes, actors, strict=True), key=lambda placed: placed[0])
            address = _get(ray, by_node[0][1].address.remote())
            streams = [
                a.run.options(num_returns="streaming").remote(
                    rank, num_ranks, nodes.count(node), address, on_gpu, function, args
                )
                for rank, (node, a) in enumerate(by_node)
            ]
            open_streams = list(streams)
            while open_streams:
                # Any rank may be the one that fails: listen to all.
                ready, _ = ray.wait(open_streams, num_returns=1)
                try:
                    value = _get(ray, next(ready[0]))
                except StopIteration:
                    open_streams.remove(ready[0])
                    continue
                if ready[0] is streams[0]:
                    yield value
        finally:
            for a in actors:
                ray.kill(a)


def _each(function: Callable[..., object], calls: Sequence[tuple[object, ...]]) -> Iterator[None]:
    """Call `function` with each of `calls`, and tell after each."""
    for call in calls:
        function(*call)
        yield


class _Rank:
    """One process of a torch process group."""

    def node(self) -> str:
        """Which machine of the cluster this is on."""
        import ray

        node: str = ray.get_runtime_context().get_node_id()
        return node

    def address(self) -> str:
        """Where rank 0 will listen."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            return f"tcp://{host}:{free.getsockname()[1]}"

    def run(
        self,
        rank: int,
        num_ranks: int,
        num_on_machine: int,
        address: str,
        on_gpu: bool,
        function: Callable[..., Iterator[object]],
        args: tuple[object, ...],
    ) -> Iterator[object]:
        import torch.distributed as dist

        os.environ["LOCAL_WORLD_SIZE"] = str(num_on_machine)  # as torchrun says it
        if num_ranks > 1:
            dist.init_process_group("nccl" if on_gpu else "gloo", init_method=address, rank=rank, world_size=num_ranks)
        yield from function(*args)
        if num_ranks > 1:
            dist.barrier()
            dist.destroy_process_group()


def _knock(address: str) -> None:
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


def _get(ray: Any, reference: Any) -> Any:
    """The value behind a Ray reference; a user's mistake made elsewhere arrives as what it was."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise error.cause from None
        raise
