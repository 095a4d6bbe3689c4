"""A gang: Ray actors that are the ranks of one torch process group, placed together or not at all."""

import os
import socket
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipeline.runtime.console import Console
from pipeline.runtime.placement import GangPlacement
from pipeline.runtime.remote import result

T = TypeVar("T")
_FIRST_WAIT_S, _WAIT_S = 30, 300


class Gang:
    """Holds a placement group and its actors; lets go of both at the end of the block, however that ends."""

    def __init__(self, ray: Any, placement: GangPlacement, console: Console) -> None:
        self._ray = ray
        self._placement = placement
        self._console = console
        self._group: Any = None
        self._actors: list[Any] = []

    def __enter__(self) -> "Gang":
        from ray.util.placement_group import placement_group, remove_placement_group

        placement = self._placement
        self._group = placement_group([dict(bundle) for bundle in placement.bundles], strategy=placement.strategy)
        try:
            self._wait()
            self._actors = self._start()
        except BaseException:
            remove_placement_group(self._group)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        from ray.util.placement_group import remove_placement_group

        for actor in self._actors:
            self._ray.kill(actor)
        remove_placement_group(self._group)

    def run(self, function: Callable[..., Iterator[T]], args: tuple[object, ...]) -> Iterator[T]:
        """Run the generator `function(*args)` on every rank and yield what rank 0 yields. An error of any rank ends all."""
        ray, num_ranks = self._ray, len(self._actors)
        # Ranks of a machine follow one another, as torch expects of groups within machines.
        nodes: list[str] = result(ray, [actor.node.remote() for actor in self._actors])
        by_node = sorted(zip(nodes, self._actors, strict=True), key=lambda placed: placed[0])
        address = result(ray, by_node[0][1].address.remote())
        uses_gpus = bool(self._placement.num_gpus)
        streams = [
            actor.run.options(num_returns="streaming").remote(
                rank, num_ranks, nodes.count(node), address, uses_gpus, function, args
            )
            for rank, (node, actor) in enumerate(by_node)
        ]
        open_streams = list(streams)
        while open_streams:
            # Any rank may be the one that fails: listen to all.
            (stream,), _ = ray.wait(open_streams, num_returns=1)
            try:
                value = result(ray, next(stream))
            except StopIteration:
                open_streams.remove(stream)
                continue
            if stream is streams[0]:
                yield value

    def _start(self) -> list[Any]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        placement = self._placement
        memory = {"memory": placement.num_bytes} if placement.num_bytes else {}
        actor = self._ray.remote(num_cpus=placement.num_cpus, num_gpus=placement.num_gpus, **memory)(_Rank)
        bundles = (number // placement.ranks_per_bundle for number in range(placement.num_ranks))
        strategies = (PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=b) for b in bundles)
        return [actor.options(scheduling_strategy=strategy).remote() for strategy in strategies]

    def _wait(self) -> None:
        """Wait for the placement, and say now and then what is waited for: others may hold it for hours."""
        seconds = _FIRST_WAIT_S
        while not self._group.wait(seconds):
            seconds = _WAIT_S
            need = _in_words(_sum(self._placement.bundles))
            free = _in_words({name: self._ray.available_resources().get(name, 0) for name in ("CPU", "GPU", "memory")})
            self._console.say(f"  {self._placement.num_ranks} ranks wait for {need} at once; free are {free}")


def _sum(bundles: tuple[dict[str, float], ...]) -> dict[str, float]:
    return {name: sum(bundle[name] for bundle in bundles) for name in bundles[0]}


def _in_words(amounts: dict[str, float]) -> str:
    words = {"CPU": "CPUs", "GPU": "GPUs"}
    said = [f"{amount:g} {words[name]}" for name, amount in amounts.items() if name in words and (amount or name == "CPU")]
    if amounts.get("memory"):
        said.append(f"{amounts['memory'] / 2**30:.3g} GiB")
    return " and ".join(said)


class _Rank:
    """One process of a torch process group."""

    def node(self) -> str:
        """The id of the machine that this is on."""
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
        uses_gpus: bool,
        function: Callable[..., Iterator[object]],
        args: tuple[object, ...],
    ) -> Iterator[object]:
        import torch.distributed as dist

        os.environ["LOCAL_WORLD_SIZE"] = str(num_on_machine)  # as torchrun says it
        if num_ranks > 1:
            dist.init_process_group("nccl" if uses_gpus else "gloo", init_method=address, rank=rank, world_size=num_ranks)
        yield from function(*args)
        if num_ranks > 1:
            dist.barrier()
            dist.destroy_process_group()
