"""The loop: which stages a run has, and running them in order."""

from collections.abc import Callable
from pathlib import Path

from curation.base import rng
from curation.base.errors import StaleArtifactError
from pipeline.config import DigitsConfig, RunConfig
from pipeline.runtime.ray_executor import Runtime
from pipeline.sources.digits import WriteDigits
from pipeline.stages.cluster import Cluster
from pipeline.stages.dedup import Dedup
from pipeline.stages.embed import Embed
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.select import Select
from pipeline.stages.shard import Shard
from pipeline.stages.stage import HOW_TO_REDO, Step, run_step, set_aside, stale
from pipeline.stages.train import Train
from trainers.engine.tensorboard import require_package


def steps(config: RunConfig) -> list[Step]:
    """Every stage of the run, in the order in which they run.

    Round r embeds the pool with the encoder that round r - 1 trained; round 0 with `embed.encoder`, whose worth is measured
    too, as the baseline.
    """

    def stream(stage: str, number: int) -> int:
        return rng.key(config.seed, stage, number) >> 12  # as JSON numbers, exact everywhere

    result: list[Step] = []

    def add(step: Step) -> Step:
        result.append(step)
        return step

    if isinstance(config.source, DigitsConfig):
        raw = add(Step("raw", WriteDigits(config.source)))
        samples = add(Step("samples", Shard(config.shard, None), {"images": raw}))
    else:
        samples = add(Step("samples", Shard(config.shard, config.source)))
    previous: Step | None = None
    for number in range(config.rounds):
        place = f"round-{number}"
        encoder = {"encoder": previous} if previous else {}
        embed = Embed(config.embed, stream("embed", number), has_encoder=previous is not None)
        embeddings = add(Step(f"{place}/embed", embed, {"samples": samples, **encoder}))
        if number == 0:
            baseline = Evaluate(config.evaluate, stream("evaluate", -1))
            add(Step("baseline/evaluate", baseline, {"samples": samples, "encoder": embeddings}))
        cluster = Cluster(config.cluster, stream("cluster", number))
        clusters = add(Step(f"{place}/cluster", cluster, {"embeddings": embeddings}))
        select = Select(config.select, stream("select", number))
        inputs = {"samples": samples, "embeddings": embeddings, "clusters": clusters}
        if config.dedup:
            inputs["duplicates"] = add(Step(f"{place}/dedup", Dedup(config.dedup), dict(inputs)))
        selection = add(Step(f"{place}/select", select, inputs))
        start = {"previous": previous} if previous and config.train.warm_start else {}
        train = Train(config.train, stream("train", number), config.evaluate)
        previous = add(Step(f"{place}/train", train, {"samples": samples, "selection": selection, **start}))
        evaluate = Evaluate(config.evaluate, stream("evaluate", number))
        scored = {"samples": samples, "encoder": previous, "selection": selection}
        add(Step(f"{place}/evaluate", evaluate, scored))
    return result


def run(config: RunConfig, runtime: Runtime, *, redo: bool = False, begin: Callable[[], object] = lambda: None) -> None:
    """Run what is missing of the whole loop. With `redo`, work for other settings is set aside instead of refused.

    `begin` is called once nothing speaks against the run any more.
    """
    todo = steps(config)
    if config.train.tensorboard:
        require_package()
    _settle_stale(todo, config.run_dir, runtime, redo=redo)
    begin()
    for step in todo:
        run_step(step, config.run_dir, runtime)


def _settle_stale(todo: list[Step], run_dir: Path, runtime: Runtime, *, redo: bool) -> None:
    found = {
        step.name: how
        for step in todo
        if (how := stale(run_dir / step.name, step.fingerprint, step.stage.settings(), step.parents))
    }
    if found and not redo:
        name, how = next(iter(found.items()))
        others = f" ({len(found) - 1} later stages with it)" if len(found) > 1 else ""
        raise StaleArtifactError(f"{run_dir} holds {name} made differently{others}: {how}. {HOW_TO_REDO}.")
    for name in found:
        target = set_aside(run_dir / name, run_dir)
        runtime.console.say(f"{name}: made differently before; set aside in {target}")
