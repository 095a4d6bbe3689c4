from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from curation.base.errors import ConfigError
from pipeline.rounds.config import RunConfig
from pipeline.rounds.graph import steps


def config(**settings: Any) -> RunConfig:
    source = {"type": "images", "path": "/images"}
    return RunConfig.model_validate(
        {"run_dir": "/run", "source": source, "select": {"strategy": "balanced", "fraction": 0.5}} | settings
    )


def prints(run: RunConfig) -> list[tuple[str, str]]:
    return [(step.name, step.fingerprint) for step in steps(run)]


def test_a_number_is_short_for_so_many_curation_rounds() -> None:
    assert prints(config(rounds=3)) == prints(config(rounds=[{"type": "curate"}, {}, {"type": "curate"}]))
    assert [step.round for step in steps(config(rounds=1))] == [None, 0, None, 0, 0, 0, 0, 0]


def test_a_round_overrides_sections_of_the_run() -> None:
    plain = config(rounds=3)
    own = config(
        rounds=[{}, {"train": {"epochs": 7}, "dedup": {"similarity": 0.9}}, {"select": {"strategy": "random", "budget": 9}}]
    )
    assert own.for_round(0) == own
    assert (own.for_round(1).train.epochs, own.for_round(1).dedup.similarity) == (7, 0.9)  # type: ignore[union-attr]
    assert own.for_round(2).select.model_dump(exclude_unset=True) == {"strategy": "random", "budget": 9}
    before, after = dict(prints(plain)), dict(prints(own))
    assert {name for name, mark in before.items() if after[name] == mark} == {
        "samples", "baseline/evaluate", *(f"round-0/{s}" for s in ("embed", "cluster", "label", "select", "train", "evaluate")),
        "round-1/embed", "round-1/cluster", "round-1/label",
    }  # fmt: skip
    assert set(after) - set(before) == {"round-1/dedup"}
    without = config(rounds=[{}, {"dedup": None}], dedup={"similarity": 0.9})
    assert [step.name for step in steps(without) if "dedup" in step.name] == ["round-0/dedup"]


def test_mistakes_in_a_round_are_told_with_their_place() -> None:
    with pytest.raises(ValidationError, match=r"rounds\.1\.select.*; rounds\.1\.train\.epochs.*; rounds\.2\.cluster\.levles"):
        config(rounds=[{}, {"train": {"epochs": -1}, "select": {"strategy": "none"}}, {"cluster": {"levles": [3]}}])
    with pytest.raises(ValidationError, match="curate"):
        config(rounds=[{"type": "cure"}])
    with pytest.raises(ValidationError):
        config(rounds=[])


def test_resources_are_given_by_the_name_of_a_stage() -> None:
    given = {"embed": {"gpus": 8}, "shard": {"cpus": 64}}
    by_name = {step.name: step.resources for step in steps(config(rounds=1, resources=given))}
    assert by_name["round-0/embed"].gpus == 8
    assert (by_name["samples"].cpus, by_name["samples"].gpus) == (64, 0)
    assert by_name["round-0/train"].gpus is None
    assert prints(config(rounds=1, resources=given)) == prints(config(rounds=1))
    with pytest.raises(ConfigError, match=r"resources\.embde: this run has no stage of that name\. Did you mean embed\?"):
        steps(config(resources={"embde": {"gpus": 1}}))


def test_the_demo_is_a_source_like_any_other() -> None:
    demo = config(source={"type": "digits"})
    assert [step.name for step in steps(demo)] == [step.name for step in steps(config())]
    assert steps(demo)[0].fingerprint != steps(config(source={"type": "digits", "long_tail": 2}))[0].fingerprint
    assert Path("/images") == config().source.path  # type: ignore[union-attr]


def test_fingerprints_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each asks for those of its inputs: without memory that is exponential in the number of rounds."""
    from pipeline.rounds import graph

    calls = []
    monkeypatch.setattr(graph, "fingerprint", lambda *given: calls.append(given) or f"{len(calls)}")
    run = steps(config(rounds=12, dedup={}))
    assert len({step.fingerprint for step in run}) == len(run)
    assert len(calls) == len(run)
