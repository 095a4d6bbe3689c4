"""Fingerprints leave defaults out, so a default that changes must raise the version of the stages that it decides."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from curation.base.config import Config
from curation.base.sections import Section, section_of
from curation.dedup.config import DedupConfig
from curation.kmeans.config import ClusterConfig
from curation.labelers.config import ClustersLabelerConfig
from pipeline.config import RunConfig
from pipeline.sources.config import DigitsConfig, ImagesConfig
from pipeline.stages.cluster import Cluster
from pipeline.stages.config import EmbedConfig, ShardConfig
from pipeline.stages.dedup import Dedup
from pipeline.stages.embed import Embed
from pipeline.stages.evaluate import Evaluate
from pipeline.stages.label import Label
from pipeline.stages.select import Select
from pipeline.stages.shard import Shard
from pipeline.stages.stage import Stage
from pipeline.stages.train import Train
from trainers.engine.config import TrainConfig
from trainers.evaluation.config import EvaluateConfig

RECORDED = Path(__file__).parent / "defaults.json"
"""For each stage its version, and the defaults that earlier work of that version was made with."""
SETTINGS: dict[type[Stage], tuple[type[BaseModel], ...]] = {
    Shard: (ShardConfig, ImagesConfig, DigitsConfig),
    Embed: (EmbedConfig,),
    Cluster: (ClusterConfig,),
    Dedup: (DedupConfig,),
    Label: (ClustersLabelerConfig,),
    Select: section_of(RunConfig, "select").models,
    Train: (TrainConfig,),
    Evaluate: (EvaluateConfig,),
}


def defaults(models: tuple[type[BaseModel], ...]) -> dict[str, Any]:
    """The default of each setting of some classes and of the sections inside them that decides a result, as JSON values."""
    found: dict[str, Any] = {}
    waiting = list(models)
    while waiting:
        model = waiting.pop()
        if f"{model.__name__}" in found:
            continue
        found[model.__name__] = None
        assert issubclass(model, Config)
        values = model.model_construct().model_dump(mode="json")
        for name, info in model.model_fields.items():
            if name not in model.operational:
                waiting += inside(section_of(model, name))
                if not info.is_required() and name in values:
                    found[f"{model.__name__}.{name}"] = values[name]
    return {name: value for name, value in sorted(found.items()) if "." in name}


def inside(section: Section) -> list[type[BaseModel]]:
    """The classes of a section and of the items of a list of sections."""
    return [*section.models, *(inside(section.items) if section.items else [])]


@pytest.mark.parametrize("stage", SETTINGS, ids=lambda stage: stage.name)
def test_a_changed_default_raises_the_version(stage: type[Stage]) -> None:
    recorded = json.loads(RECORDED.read_text())[stage.name]
    current = defaults(SETTINGS[stage])
    assert len(current) > (stage is not Label)
    assert recorded["version"] == stage.version, f"record the defaults of version {stage.version} in {RECORDED.name}"
    changed = {name for name, value in recorded["defaults"].items() if name in current and current[name] != value}
    assert not changed, f"other defaults make other work: raise {stage.__name__}.version and record them"
    assert set(current) <= set(recorded["defaults"]), f"record the defaults of new settings in {RECORDED.name}"
