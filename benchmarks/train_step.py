"""Steps of a training beside its peers: forward, backward, optimizer and teacher, on crops that are on the device already.

`images_per_s` counts samples, not crops, once everything is compiled. `mfu` is the share of the machine's measured bf16 matrix
rate that the step's model FLOPs make (see `model_flops`). `peak_bytes` is the most memory that building and the first steps
use. Peers have the same encoder, crops, prototypes and batch; on a GPU all run in bf16 but the official code of DINO, which
runs in fp16 as it does.

`windrow-jpeg` is `windrow` fed from JPEGs in shards, decoded, cut, coloured and all, and needs `--images`; `waited` is the
share of its time in which it had no batch. `official-dino` needs `--official-dino`, a checkout of facebookresearch/dino.

    python benchmarks/train_step.py --preset gpu --images photos.tar --official-dino ~/dino --out train-step-gpu.json
"""

import argparse
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import harness
import loader
import numpy as np
import torch
import train_peers
from train_cases import CASES, Case

from pipeline.stages.costs import encoder_cost
from trainers.data.loader import Loader
from trainers.engine.config import TrainConfig
from trainers.engine.step import Engine
from trainers.methods.config import DinoConfig, IbotConfig, SimclrConfig
from trainers.methods.method import Clock, Views
from trainers.models.config import VitConfig

FIRST_STEP, STEPS_PER_EPOCH = 2000, 1000
"""Past the epoch in which prototypes are frozen."""


def model_flops(case: Case) -> float:
    """FLOPs that one sample's step cannot do without, two for every multiplication with an addition.

    The forward pass F of a crop is its matrix products, convolutions and attention: for a ViT of T tokens, N of them patches
    of P x P pixels, width D and depth L that is 6 N P² D + L (24 T D² + 4 T² D), for other encoders what torch counts without
    running them. A projector of sizes D, H, H, B and K prototypes add 2 (D H + H² + H B + B K) for every crop, and for every
    hidden patch where those are predicted. The student costs 3 F of all its crops, one forward and two backward; a teacher
    F of the global ones. Recomputation, optimizer and augmentation do not count.
    """
    views, method, encoder = case.views, case.method, case.encoder
    whole, dim = encoder_cost(encoder, views.global_size)
    local = encoder_cost(encoder, views.local_size)[0]
    if isinstance(method, SimclrConfig):
        return 3 * 2 * (whole + 2 * (dim * method.hidden_dim + method.hidden_dim * method.dim))
    assert isinstance(method, DinoConfig)
    hidden, out = method.hidden_dim, method.bottleneck_dim
    head = 2 * (dim * hidden + hidden**2 + hidden * out + out * method.prototypes)
    patches = 0.0
    if isinstance(method, IbotConfig) and isinstance(encoder, VitConfig):
        patches = 2 * method.mask_probability * sum(method.mask_ratio) / 2 * (views.global_size // encoder.patch_size) ** 2
    student = 2 * (whole + head) + views.num_local * (local + head) + patches * head
    teacher = 2 * (whole + head) + patches * head
    return 3 * student + teacher


def synthetic(case: Case, device: torch.device, seed: int) -> list[torch.Tensor]:
    """Normalised crops (2, B, 3, G, G), and (n, B, 3, L, L) if there are local ones."""
    draws = torch.Generator(device).manual_seed(seed)
    groups = ((2, case.views.global_size), (case.views.num_local, case.views.local_size))
    return [torch.randn(num, case.batch, 3, size, size, device=device, generator=draws) for num, size in groups if num]


def engine_of(case: Case, device: torch.device, seed: int, num_samples: int) -> Engine:
    """The engine of windrow, as `trainers.engine.train` makes it."""
    config = TrainConfig(method=case.method, encoder=case.encoder, views=case.views, global_batch_size=case.batch)
    engine = Engine(config, num_samples, seed=seed, device=device)
    engine.method.train()
    return engine


def clocks() -> Iterator[Clock]:
    """The clock of each step, one after another."""
    return (Clock(step, 100 * STEPS_PER_EPOCH, STEPS_PER_EPOCH) for step in itertools.count(FIRST_STEP))


def windrow(case: Case, device: torch.device, seed: int) -> Callable[[], object]:
    """A step of ours on the same crops over and over; what masks hide changes."""
    engine, crops, times = engine_of(case, device, seed, STEPS_PER_EPOCH * case.batch), synthetic(case, device, seed), clocks()
    sample = torch.arange(case.batch, device=device)

    def step() -> None:
        clock = next(times)
        engine.step(Views(crops, sample, torch.full_like(sample, -1), clock.step * case.batch + np.arange(case.batch)), clock)

    return step


def measure(name: str, engine: str, seed: int, args: argparse.Namespace) -> harness.Row:
    """One engine on one case, once."""
    case, device = CASES[name], torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.preset == "gpu" and device.type == "cpu":
        raise harness.Skipped("needs a GPU")
    waited: Callable[[], float] | None = None
    with harness.PeakMemory() as memory:
        if engine == "windrow-jpeg":
            step, waited = from_jpegs(case, device, seed, args)
        elif engine == "windrow":
            step = windrow(case, device, seed)
        else:
            step = train_peers.PEERS[name.split("-")[0], engine](case, synthetic(case, device, seed), args)
        for _ in range(case.warm_up):
            step()
        harness.now()
    before = waited() if waited else 0.0
    began = harness.now()
    for _ in range(case.steps):
        step()
    seconds = harness.now() - began
    pace = case.steps * case.batch / seconds
    mfu = pace * model_flops(case) / harness.matmul_rate(torch.bfloat16)
    row = {"images_per_s": pace, "mfu": mfu, "peak_bytes": memory.num_bytes}
    return row | ({"waited": (waited() - before) / seconds} if waited else {})


def from_jpegs(
    case: Case, device: torch.device, seed: int, args: argparse.Namespace
) -> tuple[Callable[[], object], Callable[[], float]]:
    """A step of ours on a batch from shards, and how many seconds it has waited for batches so far."""
    if args.images is None:
        raise harness.Skipped("give --images PHOTOS.tar")
    samples = loader.samples_of(loader.shards_of(args.images, marked=False))
    batches = Loader(samples, case.views, seed=seed, global_batch_size=case.batch)
    engine, times = engine_of(case, device, seed, len(samples)), clocks()
    shown = batches.batches(0, 10**6)
    return lambda: engine.step(engine.views(next(shown)), next(times)), lambda: batches.waited


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, help="a tar of JPEGs, to measure from files to step too")
    parser.add_argument("--official-dino", type=Path, help="a checkout of facebookresearch/dino, to measure it too")


if __name__ == "__main__":
    small, *large = CASES
    engines = {
        case: ["windrow", "windrow-jpeg", *(peer for method, peer in train_peers.PEERS if method == case.split("-")[0])]
        for case in CASES
    }
    presets = {"cpu": {small: engines[small]}, "gpu": {case: engines[case] for case in large}}
    harness.main("train_step", presets, measure, _arguments)
