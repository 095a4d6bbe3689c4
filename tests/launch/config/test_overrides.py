import pytest

from curation.base.errors import ConfigError
from launch.config.overrides import parse_overrides
from pipeline.rounds.config import RunConfig


def test_values_are_yaml() -> None:
    settings = parse_overrides(["a.b=1e-3", "a.c=[1, 2]", "d={e: on}", "f=", "a.b=2"], RunConfig)
    assert settings == {"a": {"b": 2, "c": [1, 2]}, "d": {"e": "on"}, "f": None}
    assert isinstance(parse_overrides(["x=1e-3"], RunConfig)["x"], float)


@pytest.mark.parametrize("word", ["rounds", "=3", "train..epochs=3", "train.mix.0=1", "--rounds=3"])
def test_a_word_that_sets_nothing_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a setting\. Write key=value"):
        parse_overrides([word], RunConfig)


def test_a_value_that_is_not_yaml_is_shown() -> None:
    with pytest.raises(ConfigError, match=r"The value '\[1' of rounds is not valid YAML: while parsing"):
        parse_overrides(["rounds=[1"], RunConfig)
