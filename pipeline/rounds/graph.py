"""The graph of a run: its stages, in the order in which they run, and what each reads."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from curation.base import rng
from curation.base.errors import ConfigError
from pipeline.artifacts.manifest import fingerprint
from pipeline.rounds.config import RunConfig
from pipeline.runtime.config import Resources
from pipeline.stages.cluster import Cluster
from pipeline.stages.dedup import Dedup
from pipeline.stages.embed import Embed
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.label import Label
from pipeline.stages.select import Select
from pipeline.stages.shard import Shard
from pipeline.stages.stage import Stage
from pipeline.stages.train import Train


@dataclass(frozen=True, eq=False)
class Step:
    """A stage at its place in a run: the directory it fills and the steps it reads from."""

    name: str
    """The directory, relative to the run's."""
    stage: Stage
    inputs: Mapping[str, "Step"] = field(default_factory=dict)
    round: int | None = None
    """The round it belongs to; None outside of rounds."""
    resources: Resources = field(default_factory=Resources)

    @cached_property
    def settings(self) -> dict[str, Any]:
        return self.stage.settings()

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.stage.makes.kind, self.stage.makes.layout, self.stage.version, self.settings, self.parents)

    @property
    def parents(self) -> dict[str, str]:
        """Fingerprints of what it reads, by role."""
        return {role: step.fingerprint for role, step in self.inputs.items()}


@dataclass
class _Graph:
    """Steps as they are added."""

    config: RunConfig
    steps: list[Step] = field(default_factory=list)

    def add(self, name: str, stage: Stage, number: int | None = None, **inputs: Step | None) -> Step:
        """A step; inputs that are None are left out."""
        given = {role: step for role, step in inputs.items() if step is not None}
        resources = stage.resources.override(self.config.resources.get(stage.name))
        self.steps.append(Step(name, stage, given, number, resources))
        return self.steps[-1]

    def rng_key(self, purpose: str, number: int) -> int:
        """A random key for one stage of one round; as a JSON number exact everywhere."""
        return rng.key(self.config.seed, purpose, number) >> 12


def steps(config: RunConfig) -> list[Step]:
    """Every stage of the run, in the order in which they run.

    Raises ConfigError if resources are given to a stage that the run does not have.
    """
    graph = _Graph(config)
    samples = graph.add("samples", Shard(config.shard, config.source))
    encoder: Step | None = None
    for number, round_config in enumerate(config.rounds):
        encoder = _ROUNDS[round_config.type](graph, config.for_round(number), number, samples, encoder)
    names = sorted({step.stage.name for step in graph.steps})
    for name in config.resources.keys() - names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ConfigError(f"resources.{name}: this run has no stage of that name.{hint} Its stages: {', '.join(names)}.")
    return graph.steps


def _curate(graph: _Graph, config: RunConfig, number: int, samples: Step, previous: Step | None) -> Step:
    """A curation round: embeds the pool with the encoder of the round before, and trains the next on an even selection.

    The first round embeds with `embed.encoder`, whose worth is measured too, as the baseline.
    """
    place = f"round-{number}"
    trained = graph.config.for_round(number - 1).train.encoder if previous else None
    embed = Embed(config.embed, graph.rng_key("embed", number), trained, has_encoder=previous is not None)
    embeddings = graph.add(f"{place}/embed", embed, number, samples=samples, encoder=previous)
    if previous is None:
        baseline = Evaluate(config.evaluate, graph.rng_key("evaluate", -1), config.embed.encoder)
        graph.add("baseline/evaluate", baseline, samples=samples, encoder=embeddings)
    cluster = Cluster(config.cluster, graph.rng_key("cluster", number))
    clusters = graph.add(f"{place}/cluster", cluster, number, embeddings=embeddings)
    rows = {"samples": samples, "embeddings": embeddings, "clusters": clusters}
    duplicates = graph.add(f"{place}/dedup", Dedup(config.dedup), number, **rows) if config.dedup else None
    labels = graph.add(f"{place}/label", Label(config.label), number, clusters=clusters)
    select = Select(config.select, graph.rng_key("select", number))
    selection = graph.add(f"{place}/select", select, number, **rows, labels=labels, duplicates=duplicates)
    train = Train(config.train, graph.rng_key("train", number), config.evaluate)
    start = previous if config.train.warm_start else None
    encoder = graph.add(f"{place}/train", train, number, samples=samples, selection=selection, previous=start)
    evaluate = Evaluate(config.evaluate, graph.rng_key("evaluate", number), config.train.encoder)
    graph.add(f"{place}/evaluate", evaluate, number, samples=samples, encoder=encoder, selection=selection, labels=labels)
    return encoder


_Round = Callable[[_Graph, RunConfig, int, Step, Step | None], Step]
_ROUNDS: dict[str, _Round] = {"curate": _curate}
"""What adds the steps of a round, and returns the one that makes its encoder, by the type of the round."""
