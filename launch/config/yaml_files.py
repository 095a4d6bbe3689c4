"""Settings in safe YAML: single values, and files that build on the file their `base:` names."""

import re
from pathlib import Path
from typing import Any

import yaml

from curation.base.errors import ConfigError
from launch.config.recipes import find


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number and only true and false are booleans."""


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag.split(":")[-1] not in ("bool", "float", "timestamp")]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, *, name: str) -> Any:
    """The value that `text` is in YAML. Raises ConfigError, which says that `name` is not valid, if it is none."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}.") from None


def read_layers(path: Path) -> list[dict[str, Any]]:
    """The settings of a file, last, and of the files it builds on, first the one that builds on none.

    `base:` is a path relative to the file, or the name of a recipe. Raises ConfigError if a file cannot be read, does not hold
    settings, or builds on itself.
    """
    layers: list[dict[str, Any]] = []
    chain: list[Path] = []
    while True:
        if path.resolve() in [earlier.resolve() for earlier in chain]:
            raise ConfigError(f"{path} is its own base: {' → '.join(map(str, [*chain, path]))}. Remove one `base:`.")
        chain.append(path)
        settings = _read(path)
        base = settings.pop("base", None)
        layers.insert(0, settings)
        if base is None:
            return layers
        beside = path.parent / str(base)
        path = beside if beside.is_file() else find(str(base))


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    settings = parse_yaml(text, name=str(path))
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold settings as `key: value`; found {type(settings).__name__}.")
    return settings
