"""What a run would cost: read from the configuration and from what lies in the run directory. Runs nothing."""

import os
from collections.abc import Mapping
from pathlib import Path

from curation.embeddings.files import EmbeddingFiles
from curation.kmeans.config import ClusterConfig
from curation.kmeans.cost import costs, suggested
from launch.matmul_rate import matmul_rate
from launch.tables import show as show_table
from launch.tables import table
from pipeline.rounds.config import RunConfig
from pipeline.rounds.record import RunRecord
from pipeline.runtime.console import duration, size
from pipeline.stages.stage import Estimate

_SECONDS_PER_STAGE = 2.0  # processes start, modules load
_DECODES_PER_SECOND = 2000.0  # a core, small images; large ones are slower
# Share of the machine's matmul rate that small networks reach, from runs of the recipes.
_EFFICIENCY = {"cpu": 0.25, "cuda": 0.3}


def show(config: RunConfig) -> None:
    """Print the plan of a run: one line a step."""
    record = RunRecord.read(config.run_dir, config)
    rate = matmul_rate()
    decodes_per_second = _DECODES_PER_SECOND * (os.cpu_count() or 1)
    states = {step.name: step.state_in(record.directory) for step in record.steps}
    measured = {  # a stage takes about as long in each round
        type(step.step.stage): step.seconds
        for step in record.steps
        if step.step and step.seconds is not None and states[step.name] == "finished"
    }
    headings = {"step": "left", "state": "left"} | dict.fromkeys(("rows", "parts", "bytes", "FLOPs", "time"), "right")
    lines, total = table(f"Plan of {config.run_dir}", headings), 0.0
    estimates = estimate(record, states)
    for step in record.steps:
        assert step.step is not None
        cost, state = estimates[step.name], states[step.name]
        seconds = _SECONDS_PER_STAGE + cost.flops / (rate.flops * _EFFICIENCY[rate.device]) + cost.decodes / decodes_per_second
        seconds = measured.get(type(step.step.stage), seconds)
        total += 0 if state == "finished" else seconds
        shown = "" if state == "finished" else f"~{duration(seconds)}"
        lines.add_row(step.name, state, f"{cost.rows:,}", f"{cost.parts:,}", size(cost.num_bytes), _si(cost.flops), shown)
    first = next(iter(estimates.values()))
    show_table(
        lines,
        f"Pool of {first.rows:,} samples and {first.held_out:,} held out; {len(config.rounds)} rounds. "
        f"About {duration(total)} left, by a matmul rate of {rate.flops / 1e9:,.0f} GFLOP/s, {rate.origin}: "
        "an order of magnitude, better once a round is done.",
    )


def estimate(record: RunRecord, states: Mapping[str, str]) -> dict[str, Estimate]:
    """The estimate of each step by name, from those of the steps it reads; that of a finished step is by its own counts.

    `states` holds the state of each step by name.
    """
    estimates: dict[str, Estimate] = {}
    for step in record.steps:
        assert step.step is not None
        stage, inputs = step.step.stage, {role: estimates[parent.name] for role, parent in step.step.inputs.items()}
        if step.manifest and states[step.name] == "finished":
            estimates[step.name] = stage.measured(step.manifest, inputs)
        else:
            estimates[step.name] = stage.estimate(inputs)
    return estimates


def show_clustering(embeddings: Path) -> None:
    """Print what clustering embeddings of the user's own would cost, with the levels that suit them."""
    source = EmbeddingFiles.open(embeddings)
    config = suggested(source.num_rows)
    words = f"'levels={list(config.levels)}'".replace(" ", "") + (f" splits={config.splits}" if config.splits > 1 else "")
    show_levels(config, source.num_rows, source.dim, f"{embeddings}: {source.num_rows:,} rows of {source.dim:,}")
    print(f"windrow cluster {embeddings} OUT {words}")


def show_levels(config: ClusterConfig, num_rows: int, dim: int, title: str) -> None:
    """Print a line for each level of a clustering: its size, its cost, and the memory it wants."""
    rate = matmul_rate()
    lines = table(
        title,
        dict.fromkeys(("level", "items", "clusters", "a cluster", "resampled", "FLOPs", "time", "memory a worker"), "right"),
    )
    for number, level in enumerate(costs(config, num_rows, dim, resident=rate.device == "cuda"), start=1):
        share = level.num_items / level.num_clusters
        seconds = level.flops / (rate.flops * _EFFICIENCY[rate.device])
        numbers = (f"{level.num_items:,}", f"{level.num_clusters:,}", f"{share:.3g}", f"{level.num_resampled:,}")
        lines.add_row(f"{number}", *numbers, _si(level.flops), f"< {duration(seconds)}", size(level.num_bytes))
    show_table(
        lines,
        f"Times are for a matmul rate of {rate.flops / 1e9:,.0f} GFLOP/s, {rate.origin}, if every k-means ran to the end; "
        "most stop far earlier.",
    )


def _si(number: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E"):
        if number < 1000 or unit == "E":
            return f"{number:.3g}{unit}" if number else ""
        number /= 1000
    raise AssertionError
