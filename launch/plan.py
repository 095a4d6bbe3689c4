"""What a run would cost, and how far it is: read from the configuration and what lies in the run directory."""

import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from curation.embeddings.files import EmbeddingFiles
from curation.kmeans.config import ClusterConfig
from curation.kmeans.cost import costs, suggested
from pipeline.artifacts.manifest import BEGUN, MANIFEST, Manifest
from pipeline.config import DigitsConfig, RunConfig
from pipeline.rounds.graph import steps
from pipeline.rounds.record import Run, headline
from pipeline.runtime.console import duration, size
from pipeline.sources.digits import held_out_count, pool_counts
from pipeline.sources.folder import POOL, find_images, thin_to_long_tail
from pipeline.stages.select import TRAINING
from pipeline.stages.stage import WORK, Step, stale
from pipeline.stages.train import EVALUATED
from trainers.engine.config import TrainConfig
from trainers.models.config import EncoderConfig, PixelsConfig
from trainers.output_files import METRICS

_SECONDS_PER_STAGE = 2.0  # processes start, modules load
_DECODES_PER_SECOND = 2000.0  # a core, small images; large ones are slower
# Share of the machine's matmul rate that small networks reach, from runs of the recipes.
_EFFICIENCY = {"cpu": 0.25, "cuda": 0.3}


@dataclass(frozen=True)
class Estimate:
    """What one stage reads and costs."""

    rows: int
    parts: int
    num_bytes: int
    flops: float
    decodes: int = 0
    """Images decoded."""


def show(config: RunConfig) -> None:
    """Print the plan of a run: one line a stage."""
    pool, held_out, source_bytes = _source_size(config)
    rate, device, cores = _matmul_rate()
    known = {name.rsplit("/", 1)[-1]: seconds for name, seconds in Run.read(config.run_dir).seconds.items()}
    table = Table(box=box.SIMPLE_HEAD, title=f"Plan of {config.run_dir}", title_justify="left")
    for heading in ("stage", "state", "rows", "parts", "bytes", "FLOPs", "time"):
        table.add_column(heading, justify="left" if heading in ("stage", "state") else "right")
    left = 0.0
    for step in steps(config):
        cost = _estimate(step, config, pool, held_out, source_bytes)
        seconds = _SECONDS_PER_STAGE + cost.flops / (rate * _EFFICIENCY[device]) + cost.decodes / _DECODES_PER_SECOND / cores
        seconds = known.get(step.name.rsplit("/", 1)[-1], seconds)
        state = state_of(step, config.run_dir)
        left += 0 if state == "finished" else seconds
        shown = "" if state == "finished" else f"~{duration(seconds)}"
        table.add_row(step.name, state, f"{cost.rows:,}", f"{cost.parts:,}", size(cost.num_bytes), _si(cost.flops), shown)
    console = Console(width=110 if not Console().is_terminal else None)
    console.print(table)
    console.print(
        f"Pool of {pool:,} images and {held_out:,} held out; {config.rounds} rounds. "
        f"About {duration(left)} left, by a matmul rate of {rate / 1e9:,.0f} GFLOP/s on {cores} "
        f"{'cores' if device == 'cpu' else 'GPUs'}: an order of magnitude, better once a round is done.",
        highlight=False,
    )


def show_clustering(embeddings: Path) -> None:
    """Print what clustering embeddings of the user's own would cost, with the levels that suit them."""
    source = EmbeddingFiles.open(embeddings)
    config = suggested(source.num_rows)
    words = f"'levels={list(config.levels)}'".replace(" ", "") + (f" splits={config.splits}" if config.splits > 1 else "")
    show_levels(config, source.num_rows, source.dim, f"{embeddings}: {source.num_rows:,} rows of {source.dim:,}")
    Console().print(f"windrow cluster {embeddings} OUT {words}", highlight=False, soft_wrap=True)


def show_levels(config: ClusterConfig, num_rows: int, dim: int, title: str) -> None:
    """Print a line for each level of a clustering: its size, its cost, and the memory it wants."""
    rate, device, count = _matmul_rate()
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left")
    for heading in ("level", "items", "clusters", "a cluster", "resampled", "FLOPs", "time", "memory a worker"):
        table.add_column(heading, justify="right")
    for number, level in enumerate(costs(config, num_rows, dim, resident=device == "cuda"), start=1):
        share = level.num_items / level.num_clusters
        seconds = level.flops / (rate * _EFFICIENCY[device])
        numbers = (f"{level.num_items:,}", f"{level.num_clusters:,}", f"{share:.3g}", f"{level.num_resampled:,}")
        table.add_row(f"{number}", *numbers, _si(level.flops), f"< {duration(seconds)}", size(level.num_bytes))
    Console(width=110 if not Console().is_terminal else None).print(table)
    Console().print(
        f"Times are for {count} {'GPUs' if device == 'cuda' else 'cores'} like these if every k-means ran to the end; most "
        "stop far earlier.",
        highlight=False,
    )


def show_status(config: RunConfig) -> None:
    """Print how far a run is: one line a stage."""
    run = Run.read(config.run_dir)
    table = Table(box=box.SIMPLE_HEAD, title=f"Status of {config.run_dir}", title_justify="left")
    for heading in ("stage", "state", "bytes", "time", "result"):
        table.add_column(heading, justify="right" if heading in ("bytes", "time") else "left")
    for step in steps(config):
        manifest = run.manifests.get(step.name)
        num_bytes = size(sum(part.num_bytes for part in manifest.parts)) if manifest else ""
        took = duration(run.seconds[step.name]) if manifest and step.name in run.seconds else ""
        made = headline(manifest) if manifest else ""
        table.add_row(step.name, state_of(step, config.run_dir), num_bytes, took, made)
    Console(width=110 if not Console().is_terminal else None).print(table)


def state_of(step: Step, run_dir: Path) -> str:
    """finished, begun (with what is done), made differently, or to do."""
    out = run_dir / step.name
    if stale(out, step.fingerprint, step.stage.settings(), step.parents):
        return "made differently"
    if (out / MANIFEST).exists():
        return "finished"
    if not (out / BEGUN).exists():
        return "to do"
    done = len(list((out / WORK).glob("*.json"))) if (out / WORK).exists() else 0
    if step.stage.kind == "training" and (out / METRICS).exists():
        return f"begun, step {sum(1 for _ in (out / METRICS).open()):,}"
    return f"begun, {done} parts" if done else "begun"


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or unit == "E":
            return f"{number:.3g}{unit}" if number else ""
        number /= 1000
    raise AssertionError


def _source_size(config: RunConfig) -> tuple[int, int, int]:
    """Images of the pool, held-out images and their bytes: counted if sharded, else listed, before any is set aside."""
    samples = config.run_dir / "samples"
    if (samples / MANIFEST).exists():
        statistics = Manifest.read(samples).statistics
        return statistics["pool"], statistics["held_out"], statistics["bytes"]
    if isinstance(config.source, DigitsConfig):
        pool, held_out = int(pool_counts(config.source).sum()), held_out_count()
        return pool, held_out, 700 * (pool + held_out)
    with tempfile.TemporaryDirectory() as scratch:
        found = thin_to_long_tail(find_images(config.source.path, Path(scratch)), config.source.long_tail)
    pool = sum(image.split == POOL for image in found)
    return pool, len(found) - pool, sum(image.size for image in found)


def _estimate(step: Step, config: RunConfig, pool: int, held_out: int, source_bytes: int) -> Estimate:
    shards = math.ceil(pool / config.shard.samples_per_shard)
    first_round = "round-0" in step.name or "baseline" in step.name
    encoder = config.embed.encoder if first_round else config.train.encoder
    chosen = config.select.rows(pool)
    match step.stage.kind:
        case "samples":
            parts = shards + math.ceil(held_out / config.shard.samples_per_shard)
            return Estimate(pool + held_out, 2 * parts, source_bytes, 0, pool + held_out)
        case "embeddings":
            flops, dim = encoder_cost(encoder)
            return Estimate(pool, shards, pool * (2 * dim + 8), pool * flops, pool)
        case "clusters":
            dim = encoder_cost(encoder)[1]
            levels = config.cluster.levels
            num_bytes = 4 * dim * sum(levels) + 8 * (pool + sum(levels[:-1]))
            flops = sum(level.flops for level in costs(config.cluster, pool, dim))
            return Estimate(pool, 1 + 4 * len(levels), num_bytes, flops)
        case "duplicates":
            dim, clusters = encoder_cost(encoder)[1], config.cluster.levels[0]
            return Estimate(pool, 2 * math.ceil(pool / 250_000), 16 * pool, 2.0 * pool * dim * (2 * clusters + pool / clusters))
        case "selection":
            return Estimate(chosen, 3, 16 * pool, 0)
        case "training":
            mixed = [part for other in config.train.mix for part in Manifest.read(other.selection).parts]
            exposures = config.train.epochs * (chosen + sum(part.num_rows for part in mixed if part.path == TRAINING))
            crops = 2 + config.train.views.num_local
            flops, decodes = exposures * train_flops(config.train), round(exposures * (1 + crops / 4))
            if config.train.evaluate_every:
                times = config.train.epochs / config.train.evaluate_every + 1
                most = min(config.evaluate.max_samples, EVALUATED)
                measured = round(times * (min(pool, most) + min(held_out, most)))
                flops, decodes = flops + measured * encoder_cost(config.train.encoder)[0], decodes + measured
            return Estimate(chosen, 4, 0, flops, decodes)
        case "evaluation":
            rows = min(pool, config.evaluate.max_samples) + min(held_out, config.evaluate.max_samples)
            used = config.embed.encoder if "baseline" in step.name else config.train.encoder
            return Estimate(rows, 1, 2000, rows * encoder_cost(used)[0], rows)
        case "raw images":
            return Estimate(pool + held_out, pool + held_out, source_bytes, 0)
        case kind:
            raise AssertionError(f"nobody has estimated {kind}")


def train_flops(config: TrainConfig) -> float:
    """FLOPs of one sample's step: forward and backward of the student on every crop, the teacher on the global ones.

    With stages the mean over the training.
    """
    teacher = 1 if "momentum" in type(config.method).model_fields else 0
    stages = config.views_from()
    ends = [*(begins for begins, _ in stages[1:]), 1.0]
    flops = 0.0
    for (begins, views), end in zip(stages, ends, strict=True):
        whole = encoder_cost(config.encoder, views.global_size)[0]
        local = encoder_cost(config.encoder, views.local_size)[0] if views.num_local else 0
        flops += (end - begins) * (whole * 2 * (3 + teacher) + local * views.num_local * 3)
    return flops


def encoder_cost(config: EncoderConfig, size: int | None = None) -> tuple[float, int]:
    """Forward FLOPs of one image with `size` pixels a side, and the feature dimension. Nothing is allocated."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from trainers.models.encoders import build_backbone, without_weights

    if isinstance(config, PixelsConfig):
        inputs = 3 * config.image_size**2
        return 2.0 * inputs * config.dim, min(config.dim, inputs)
    with torch.device("meta"):
        backbone = build_backbone(without_weights(config)).eval()
        with FlopCounterMode(display=False) as counter:
            features = backbone(torch.empty(1, 3, size or config.image_size, size or config.image_size))
    return float(counter.get_total_flops()), features.shape[1]


def _matmul_rate() -> tuple[float, str, int]:
    """Measured matmul FLOP/s of this machine with all it has, the device, and how many cores or GPUs that is."""
    import os

    import torch

    if torch.cuda.is_available():
        device, side, dtype, count = "cuda", 8192, torch.bfloat16, torch.cuda.device_count()
    else:
        device, side, dtype, count = "cpu", 1024, torch.float32, os.cpu_count() or 1
    a = torch.randn(side, side, device=device, dtype=dtype)
    (a @ a).sum().item()
    began, runs = time.perf_counter(), 0
    while time.perf_counter() - began < 0.2:
        (a @ a).sum().item()
        runs += 1
    rate = runs * 2 * side**3 / (time.perf_counter() - began)
    return rate * (count if device == "cuda" else 1), device, count
