"""Settings given as words of the command line, `key=value`."""

import re
from collections.abc import Sequence
from typing import Any

from curation.base.errors import ConfigError
from curation.base.merge import combine
from launch.config.yaml_files import parse_yaml

_KEY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def parse_overrides(words: Sequence[str], model: Any) -> dict[str, Any]:
    """Words such as `train.epochs=10`, whose values are YAML, as the nested settings of `model`.

    `model` is a configuration class or a tagged union of some. Of words that set the same, the last wins. Raises ConfigError at
    the first word that sets nothing.
    """
    settings: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not _KEY.fullmatch(key):
            raise ConfigError(f"{word!r} is not a setting. Write key=value, for example train.epochs=10.")
        nested = parse_yaml(text, name=f"The value {text!r} of {key}")
        for name in reversed(key.split(".")):
            nested = {name: nested}
        settings = combine(settings, nested, model)
    return settings
