"""Settings of a run."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from curation.base.config import Config
from curation.base.merge import merge
from curation.dedup.config import DedupConfig
from curation.kmeans.config import ClusterConfig
from curation.labelers.config import ClustersLabelerConfig, LabelConfig
from curation.selectors.config import SelectConfig
from pipeline.rounds.config import CurateConfig, RoundConfig
from pipeline.runtime.config import Resources
from pipeline.sources.config import SourceConfig
from pipeline.stages.config import EmbedConfig, ShardConfig
from trainers.engine.config import TrainConfig
from trainers.evaluation.config import EvaluateConfig


def _expand_number(rounds: object) -> object:
    """A number of rounds as so many curation rounds."""
    if isinstance(rounds, int) and not isinstance(rounds, bool):
        return ({},) * rounds
    if not isinstance(rounds, list | tuple):
        raise ValueError(f"found {rounds!r}; give a number of rounds or a list, such as [{{}}, {{train: {{epochs: 40}}}}]")
    return rounds


class RunConfig(Config):
    """A run: the rounds of one source, in one directory."""

    run_dir: Path
    """Everything the run writes. The same command on the same directory continues it."""
    seed: int = Field(default=0, ge=0)
    rounds: Annotated[tuple[RoundConfig, ...], BeforeValidator(_expand_number), Field(min_length=1)] = (CurateConfig(),) * 2
    """A list of rounds, each with its type and what differs in it from the sections below; or a number of curation rounds."""
    source: SourceConfig
    shard: ShardConfig = ShardConfig()
    embed: EmbedConfig = EmbedConfig()
    cluster: ClusterConfig = ClusterConfig()
    dedup: DedupConfig | None = None
    """Leave near-duplicates out before selecting; without this section nothing is left out."""
    label: LabelConfig = ClustersLabelerConfig()
    select: SelectConfig
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    resources: dict[str, Resources] = Field(default_factory=dict)
    """What stages may use, by the name of the stage, such as `embed: {gpus: 8}`; without an entry all of the cluster."""

    def for_round(self, number: int) -> "RunConfig":
        """The settings of one round: those of the run with what the round overrides."""
        overrides = self.rounds[number].overrides()
        if not overrides:
            return self
        settings = self.model_dump(mode="json", exclude_unset=True) | {"rounds": 1}
        return RunConfig.model_validate(merge(settings, overrides, RunConfig))

    @model_validator(mode="after")
    def _rounds_are_valid(self) -> "RunConfig":
        problems = []
        for number in range(len(self.rounds)):
            try:
                self.for_round(number)
            except ValidationError as error:
                for problem in error.errors(include_url=False):
                    place = ".".join(str(part) for part in (number, *problem["loc"]))
                    problems.append(f"rounds.{place}: {problem['msg'].removeprefix('Value error, ')}")
        if problems:
            raise ValueError("; ".join(problems))
        return self
