import pytest

from curation.base.errors import ConfigError
from pipeline.runtime.config import Resources
from pipeline.runtime.placement import Machine, gang, spread, whole_machine

CPUS = [Machine(16, 0, 64 * 2**30)] * 4
MIXED = [Machine(96, 8, 2**40), Machine(96, 8, 2**40), Machine(16, 0, 64 * 2**30)]


def test_tasks_take_a_core_each_or_a_gpu_with_its_share_of_them() -> None:
    task = spread(CPUS, Resources(), on_gpu=True)
    assert (task.num_cpus, task.num_gpus, task.num_at_once, task.num_queued) == (1, 0, 64, 128)
    task = spread(MIXED, Resources(), on_gpu=True)
    assert (task.num_cpus, task.num_gpus, task.num_at_once) == (12, 1, 16)
    assert spread(MIXED, Resources(), on_gpu=False).num_at_once == 208


@pytest.mark.parametrize(
    ("resources", "on_gpu", "num_at_once"),
    [
        (Resources(cpus=10), False, 10),
        (Resources(cpus=1000), False, 208),
        (Resources(gpus=4), True, 4),
        (Resources(gpus=0), True, 208),
        (Resources(cpus=24), True, 2),
        (Resources(memory_gib=32), False, 66),
    ],
)
def test_users_may_ask_for_less(resources: Resources, on_gpu: bool, num_at_once: int) -> None:
    task = spread(MIXED, resources, on_gpu=on_gpu)
    assert task.num_at_once == num_at_once
    assert task.num_queued == (num_at_once if task.is_limited else 2 * num_at_once)
    assert bool(task.options().get("memory")) == (resources.memory_gib is not None)


def test_a_call_has_a_machine_to_itself() -> None:
    assert whole_machine(MIXED, Resources(), on_gpu=True).options() == {"num_cpus": 96, "num_gpus": 1}
    assert whole_machine(MIXED, Resources(cpus=4), on_gpu=False).options() == {"num_cpus": 4, "num_gpus": 0}


def test_ranks_share_machines_evenly() -> None:
    placed = gang(MIXED, Resources(), 16, on_gpu=True)
    assert placed.bundles == ({"CPU": 12, "GPU": 1.0},) * 16
    assert placed.strategy == "PACK"
    over_two = gang(MIXED, Resources(machines=2), 4, on_gpu=True)
    assert over_two.bundles == ({"CPU": 96, "GPU": 2.0},) * 2
    assert (over_two.strategy, over_two.ranks_per_bundle, over_two.num_ranks) == ("STRICT_SPREAD", 2, 4)
    assert gang([Machine(2, 0, 0)], Resources(), 4, on_gpu=True).bundles == ({"CPU": 0.5},) * 4


@pytest.mark.parametrize(
    ("resources", "num_ranks", "message"),
    [
        (Resources(), 17, "17 ranks were asked for, but there are 16 GPUs"),
        (Resources(gpus=4), 8, "but there are 16 GPUs, of which this stage may use 4"),
        (Resources(machines=3), 6, "spread over 3 machines: the cluster has 2"),
        (Resources(machines=2), 5, "5 ranks are to be spread over 2 machines"),
    ],
)
def test_what_can_never_be_placed_is_refused(resources: Resources, num_ranks: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gang(MIXED, resources, num_ranks, on_gpu=True)


def test_memory_that_no_machine_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"100 GiB, and no machine has that much: the largest has 64 GiB"):
        spread(CPUS, Resources(memory_gib=100), on_gpu=False)
