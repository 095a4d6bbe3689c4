"""The recipes that come with the program, and the files that a user may name instead."""

import difflib
from importlib.resources import files
from pathlib import Path

from curation.base.errors import ConfigError


def recipes() -> dict[str, Path]:
    """The files of all recipes by name, such as quickstart or small/dino. A file whose name begins with _ is a shared base."""
    root = Path(str(files("configs")))
    paths = sorted(root.rglob("[!_]*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}


def find(name: str) -> Path:
    """The file that `name`, a path or the name of a recipe, stands for. Raises ConfigError if there is none."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    by_name = recipes()
    if name in by_name:
        return by_name[name]
    close = difflib.get_close_matches(name, by_name, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"There is no file {name} and no recipe of that name.{hint} Recipes: {', '.join(sorted(by_name))}.")
