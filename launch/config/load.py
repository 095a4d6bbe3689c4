"""Configurations from a recipe or a file and the words of the command line, and back into a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from curation.base.errors import ConfigError
from curation.base.files import write_atomic
from curation.base.merge import merge
from launch.config.check import check
from launch.config.overrides import parse_overrides
from launch.config.recipes import find, recipes
from launch.config.yaml_files import read_layers
from pipeline.rounds.config import RunConfig

T = TypeVar("T")


def load_run(name: str, overrides: Sequence[str] = (), *, run_dir: Path | None = None) -> RunConfig:
    """The run that a recipe or file and the words `overrides` describe, with absolute paths.

    `run_dir`, if given, takes the place of the directory that they name. Raises ConfigError with every mistake at once.
    """
    path = find(name)
    settings: dict[str, Any] = {}
    for layer in (*read_layers(path), parse_overrides(overrides, RunConfig)):
        settings = merge(settings, layer, RunConfig)
    settings.setdefault("run_dir", f"runs/{name if name in recipes() else path.stem}")
    config = check(RunConfig, settings, of=name)
    absolute: dict[str, Any] = {"run_dir": run_dir.absolute() if run_dir else config.run_dir.expanduser().absolute()}
    if config.source.type == "images":
        absolute["source"] = config.source.model_copy(update={"path": config.source.path.expanduser().absolute()})
    return config.model_copy(update=absolute)


def load_section(model: type[T], words: Sequence[str], *, name: str, base: dict[str, Any] | None = None) -> T:
    """The section of a run that `words` such as `epochs=10` describe, on top of the settings `base`.

    `model` is the section's configuration class or tagged union, `name` what errors call it. Raises ConfigError with every
    mistake at once.
    """
    return check(model, merge(base or {}, parse_overrides(words, model), model), of=name)


def save_run(config: RunConfig) -> Path:
    """Write the complete configuration into the run directory: `windrow run` on that file is the same run.

    Returns its path. Raises ConfigError if the directory cannot be written.
    """
    path = config.run_dir / "config.yaml"
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    try:
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError(f"run_dir {config.run_dir} cannot be written: {error.strerror}. Choose another.") from error
    return path
