"""From a YAML file and `key=value` words to a checked configuration."""

import difflib
import re
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from curation.base.errors import ConfigError
from curation.base.files import write_atomic
from pipeline.config import RunConfig

T = TypeVar("T")


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


def load_run(name: str, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that recipe or file `name` and `overrides` describe. Raises ConfigError with every mistake at once."""
    path = find(name)
    merged = _merge(_read_with_bases(path), parse_overrides(overrides))
    merged.setdefault("run_dir", f"runs/{name if name in recipes() else path.stem}")
    config = check(RunConfig, merged, of=name)
    absolute: dict[str, Any] = {"run_dir": config.run_dir.expanduser().absolute()}
    if config.source.type == "images":
        absolute["source"] = config.source.model_copy(update={"path": config.source.path.expanduser().absolute()})
    return config.model_copy(update=absolute)


def save_run(config: RunConfig) -> Path:
    """Write the complete configuration into the run directory: `windrow run` on that file is the same run."""
    path = config.run_dir / "config.yaml"
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    try:
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError(f"run_dir {config.run_dir} cannot be written: {error.strerror}. Choose another.") from error
    return path


def recipes() -> dict[str, Path]:
    """The recipes that come with the program, by name, such as quickstart or small/dino."""
    root = Path(str(files("configs")))
    found = sorted(root.rglob("[!_]*.yaml"))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in found}


def find(name: str) -> Path:
    """The file `name` points at: a path, or the name of a recipe."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    known = recipes()
    if name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(f"There is no file {name} and no recipe of that name.{hint} Recipes: {', '.join(sorted(known))}.")


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Words like `train.epochs=10` to nested settings; the value is YAML."""
    result: dict[str, Any] = {}
    for word in overrides:
        key, equals, value = word.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", key):
            raise ConfigError(f"{word!r} is not a setting. Write key=value, for example train.epochs=10.")
        try:
            parsed = yaml.load(value, _Loader)  # noqa: S506 - _Loader is a SafeLoader
        except yaml.YAMLError as error:
            raise ConfigError(f"The value of {key} is not valid YAML: {value!r} ({_where(error)}).") from None
        for part in reversed(key.split(".")):
            parsed = {part: parsed}
        result = _merge(result, parsed)
    return result


def check(model: type[T] | TypeAdapter[T], settings: dict[str, Any], *, of: str) -> T:
    """`settings` as a `model`. Raises ConfigError listing every mistake: where, what was found, what is allowed."""
    adapter = model if isinstance(model, TypeAdapter) else TypeAdapter(model)
    if isinstance(model, type) and issubclass(model, BaseModel):
        settings = _with_default_variants(model, settings)
    try:
        return adapter.validate_python(settings)
    except ValidationError as error:
        lines = [f"  {_explain(problem, adapter, settings)}" for problem in error.errors(include_url=False)]
        plural = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{of} has {plural} in its settings:\n" + "\n".join(lines)) from None


def _with_default_variants(model: type[BaseModel], settings: dict[str, Any]) -> dict[str, Any]:
    """Name the default variant of a section that sets some of its fields but not its type."""
    result = dict(settings)
    for name, info in model.model_fields.items():
        default, given = info.default, settings.get(name)
        if isinstance(default, BaseModel) and isinstance(given, dict):
            kind = getattr(default, "type", None)
            result[name] = {**({"type": kind} if kind else {}), **given}
            if result[name].get("type") == kind:
                result[name] = _with_default_variants(type(default), result[name])
    return result


def _explain(problem: Any, adapter: TypeAdapter[Any], settings: dict[str, Any]) -> str:
    location = problem["loc"]
    kind = problem["type"]
    names_a_key = kind in ("missing", "extra_forbidden")
    shown = ".".join(str(part) for part in _without_tags(location, settings, names_a_key=names_a_key))
    if kind == "extra_forbidden":
        allowed = _fields_at(adapter, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{shown}: there is no such setting.{hint} Allowed here: {', '.join(allowed)}."
    if kind == "union_tag_invalid":
        tag = problem["ctx"]["discriminator"].strip("'")
        return f"{shown}.{tag}: found {problem['ctx']['tag']!r}, allowed: {problem['ctx']['expected_tags']}."
    if kind == "union_tag_not_found":
        return f"{shown}: {problem['ctx']['discriminator'].strip(chr(39))} must be set, to say which variant this is."
    if kind == "missing":
        return f"{shown}: must be set. For example {shown}=…"
    message = problem["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{shown or 'settings'}: {message}."
    return f"{shown}: found {problem['input']!r}. {message}."


def _without_tags(location: Sequence[Any], settings: Any, *, names_a_key: bool) -> list[Any]:
    """A pydantic location without the names of union variants, which are no keys of the file.

    `names_a_key` says that the last part is a key even if the file lacks it.
    """
    result, here = [], settings
    for index, part in enumerate(location):
        is_key = names_a_key and index == len(location) - 1
        if isinstance(here, dict) and part not in here and not is_key:
            continue
        result.append(part)
        here = here.get(part) if isinstance(here, dict) else None
    return result


def _fields_at(adapter: TypeAdapter[Any], location: Sequence[Any]) -> list[str]:
    """The field names a model at `location` knows, found through the JSON schema."""
    schema = adapter.json_schema()
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in node:
            node = definitions[node["$ref"].split("/")[-1]]
        return node

    node = resolve(schema)
    for part in location:
        if "discriminator" in node and part in node["discriminator"]["mapping"]:
            node = resolve({"$ref": node["discriminator"]["mapping"][part]})
        else:
            node = resolve(node.get("properties", {}).get(part, {}))
    return list(node.get("properties", {}))


def _read_with_bases(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The settings in a file, over those of the file its `base:` names."""
    if path in seen:
        raise ConfigError(f"{path} is its own base: {' → '.join(str(p) for p in (*seen, path))}.")
    try:
        settings = yaml.load(path.read_text(), _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {_where(error)}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from None
    settings = {} if settings is None else settings
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} must hold settings as `key: value`; found {type(settings).__name__}.")
    base = settings.pop("base", None)
    if base is None:
        return settings
    beside = path.parent / str(base)
    return _merge(_read_with_bases(beside if beside.is_file() else find(str(base)), (*seen, path)), settings)


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, key by key. A section that changes its variant starts afresh."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            changed = any(tag in value and tag in old and value[tag] != old[tag] for tag in ("type",))
            result[key] = value if changed else _merge(old, value)
        else:
            result[key] = value
    return result


def _where(error: yaml.YAMLError) -> str:
    return " ".join(str(error).split())


def describe_defaults(model: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default, explanation) of every setting of a section, for `--help`."""
    rows = []
    for name, info in model.model_fields.items():
        default = "required" if info.is_required() else str(info.get_default())
        rows.append((prefix + name, default, " ".join((info.description or "").split())))
    return rows
