"""Settings of a run: the sections of all rooms together, and a class for each type of round."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from curation.base.config import Config
from curation.base.merge import merge
from curation.dedup.config import DedupConfig
from curation.kmeans.config import ClusterConfig
from curation.labelers.config import ClustersLabelerConfig, LabelConfig
from curation.selectors.config import SelectConfig
from pipeline.runtime.config import Resources
from pipeline.sources.config import SourceConfig
from pipeline.stages.config import EmbedConfig, ShardConfig
from trainers.engine.config import TrainConfig
from trainers.evaluation.config import EvaluateConfig

Overrides = dict[str, Any]


class CurateConfig(Config):
    """A curation round: embed, cluster, dedup, label, select, train, evaluate.

    Each section holds what differs in this round from the section of the run.
    """

    type: Literal["curate"] = "curate"
    embed: Overrides | None = None
    cluster: Overrides | None = None
    dedup: Overrides | None = None
    label: Overrides | None = None
    select: Overrides | None = None
    train: Overrides | None = None
    evaluate: Overrides | None = None

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was given: a section that is null is another thing than one that is not there."""
        given = self.model_fields_set | {"type"}
        return {name: value for name, value in serialize(self).items() if name in given}

    def overrides(self) -> dict[str, Overrides | None]:
        """The sections that were given."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set - {"type"})}


RoundConfig = CurateConfig


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
