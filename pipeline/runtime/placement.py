"""Placement: what each task or rank is given of a cluster. Arithmetic only; it knows no Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curation.base.errors import ConfigError
from pipeline.runtime.config import Resources


@dataclass(frozen=True)
class Machine:
    """What one machine of the cluster has."""

    cpus: float
    gpus: float
    memory: float
    """Bytes."""


@dataclass(frozen=True)
class Task:
    """What each of many tasks is given, and how many run at once."""

    num_cpus: float
    num_gpus: int
    num_bytes: int
    num_at_once: int
    is_limited: bool = False
    """Whether more than `num_at_once` would fit into the cluster."""

    @property
    def num_queued(self) -> int:
        """Tasks handed out at once: twice those that run, so that none waits for the driver; but no more than are allowed."""
        return self.num_at_once if self.is_limited else 2 * self.num_at_once

    def options(self) -> dict[str, Any]:
        """The same in Ray's words."""
        memory = {"memory": self.num_bytes} if self.num_bytes else {}
        return {"num_cpus": self.num_cpus, "num_gpus": self.num_gpus, **memory}


@dataclass(frozen=True)
class GangPlacement:
    """Bundles of what ranks are given; all are reserved together, or none."""

    bundles: tuple[dict[str, float], ...]
    ranks_per_bundle: int
    strategy: str
    num_cpus: float
    """CPU cores of one rank."""
    num_gpus: int
    num_bytes: int

    @property
    def num_ranks(self) -> int:
        return len(self.bundles) * self.ranks_per_bundle


def spread(machines: Sequence[Machine], resources: Resources, *, on_gpu: bool) -> Task:
    """Tasks of one core each, as many at once as there are cores; or of one GPU and its share of the cores."""
    machines, uses_gpus = _with_gpus(machines, resources, on_gpu=on_gpu)
    num_bytes = _bytes(resources)
    if uses_gpus:
        num_cpus = max(1, math.floor(min(machine.cpus / machine.gpus for machine in machines)))
        fit, allowed = sum(machine.gpus for machine in machines), resources.gpus
        if resources.cpus is not None:
            allowed = min(allowed or resources.cpus, max(1, resources.cpus // num_cpus))
    else:
        num_cpus, fit, allowed = 1, sum(machine.cpus for machine in machines), resources.cpus
    if num_bytes:
        most = sum(machine.memory // num_bytes for machine in machines)
        if not most:
            raise ConfigError(
                f"A task is to be given {resources.memory_gib:g} GiB, and no machine has that much: the largest has "
                f"{max(machine.memory for machine in machines) / 2**30:.3g} GiB. Lower memory_gib of this stage in resources."
            )
        fit = min(fit, most)
    num_at_once = max(1, int(fit if allowed is None else min(fit, allowed)))
    return Task(num_cpus, int(uses_gpus), num_bytes, num_at_once, is_limited=allowed is not None and allowed < fit)


def whole_machine(machines: Sequence[Machine], resources: Resources, *, on_gpu: bool) -> Task:
    """One task with all cores of a machine, and a GPU if there is one."""
    machines, uses_gpus = _with_gpus(machines, resources, on_gpu=on_gpu)
    num_cpus = max(machine.cpus for machine in machines)
    return Task(min(num_cpus, resources.cpus or num_cpus), int(uses_gpus), _bytes(resources), 1)


def gang(machines: Sequence[Machine], resources: Resources, num_ranks: int, *, on_gpu: bool) -> GangPlacement:
    """Ranks that share the cores evenly, with a GPU each if there are any. Raises ConfigError for what can never be placed."""
    machines, uses_gpus = _with_gpus(machines, resources, on_gpu=on_gpu)
    gpus = int(sum(machine.gpus for machine in machines))
    if uses_gpus and num_ranks > min(gpus, resources.gpus or gpus):
        allowed = "" if resources.gpus is None else f", of which this stage may use {resources.gpus}"
        raise ConfigError(
            f"{num_ranks} ranks were asked for, but there are {gpus} GPUs{allowed}. A GPU serves one rank: ask for fewer."
        )
    num_machines = resources.machines
    if num_machines is not None and (num_machines > len(machines) or num_ranks % num_machines):
        raise ConfigError(
            f"{num_ranks} ranks are to be spread over {num_machines} machines: the cluster has {len(machines)} that can take "
            "them, and each must get as many as the others. Change machines of this stage in resources, or its ranks."
        )
    over = num_machines or len(machines)
    per_machine = math.ceil(num_ranks / over)
    share = min(machine.cpus for machine in machines) / per_machine
    if resources.cpus is not None:
        share = min(share, resources.cpus / num_ranks)
    share = math.floor(share) if share > 1 else share
    rank = {"CPU": share, **({"GPU": 1.0} if uses_gpus else {}), **({"memory": _bytes(resources)} if _bytes(resources) else {})}
    if num_machines is None:
        bundles, ranks_per_bundle, strategy = (rank,) * num_ranks, 1, "PACK"
    else:
        bundle = {name: amount * per_machine for name, amount in rank.items()}
        bundles, ranks_per_bundle, strategy = (bundle,) * num_machines, per_machine, "STRICT_SPREAD"
    return GangPlacement(bundles, ranks_per_bundle, strategy, share, int(uses_gpus), _bytes(resources))


def _with_gpus(machines: Sequence[Machine], resources: Resources, *, on_gpu: bool) -> tuple[Sequence[Machine], bool]:
    """The machines to use: those with GPUs, where these are wanted, allowed and there."""
    with_gpus = [machine for machine in machines if machine.gpus] if on_gpu and resources.gpus != 0 else []
    return with_gpus or machines, bool(with_gpus)


def _bytes(resources: Resources) -> int:
    return 0 if resources.memory_gib is None else int(resources.memory_gib * 2**30)
