"""Validation of settings, and the sentences that explain every mistake in them."""

import difflib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from curation.base.errors import ConfigError
from curation.base.sections import Section, describe, section_of, tags

T = TypeVar("T")


def check(model: type[T], settings: dict[str, Any], *, of: str) -> T:
    """`settings` as an instance of `model`, a configuration class or a tagged union of some.

    Raises ConfigError, which begins with `of`, the name of the whole, and lists every mistake: where it is, what was found,
    what is allowed.
    """
    try:
        return TypeAdapter(model).validate_python(settings)
    except ValidationError as error:
        lines = [f"  {_explain(mistake, describe(model), settings)}" for mistake in error.errors(include_url=False)]
        count = "a mistake" if len(lines) == 1 else f"{len(lines)} mistakes"
        raise ConfigError(f"{of} has {count} in its settings:\n" + "\n".join(lines)) from None


def _explain(mistake: Any, section: Section, settings: dict[str, Any]) -> str:
    """One of pydantic's error records as a sentence."""
    location, kind, context = mistake["loc"], mistake["type"], mistake.get("ctx", {})
    names_a_key = kind in ("missing", "extra_forbidden")
    path = ".".join(map(str, _without_variants(location, settings, names_a_key=names_a_key)))
    if kind == "extra_forbidden":
        allowed = _fields_at(section, location[:-1])
        close = difflib.get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"{path}: there is no such setting.{hint} Allowed here: {', '.join(allowed)}."
    if kind == "union_tag_invalid":
        tag = ".".join(filter(None, [path, context["discriminator"].strip("'")]))
        return f"{tag}: found {context['tag']!r}, allowed: {context['expected_tags']}."
    if kind == "union_tag_not_found":
        return f"{path or 'settings'}: {context['discriminator'].strip(chr(39))} must be set, to say which variant this is."
    if kind == "missing":
        return f"{path}: must be set. For example {path}=…"
    message = mistake["msg"].removeprefix("Value error, ")
    if kind == "value_error":
        return f"{path or 'settings'}: {message}."
    return f"{path}: found {mistake['input']!r}. {message}."


def _without_variants(location: Sequence[Any], settings: Any, *, names_a_key: bool) -> list[Any]:
    """A pydantic location without the names of union variants, which are no keys of the file.

    `names_a_key` says that the last part is a key even if the file lacks it.
    """
    keys, value = [], settings
    for index, part in enumerate(location):
        is_last_key = names_a_key and index == len(location) - 1
        if isinstance(value, dict) and (part in value or is_last_key):
            keys.append(part)
            value = value.get(part)
        elif isinstance(value, list | tuple) and isinstance(part, int):
            keys.append(part)
            value = value[part] if part < len(value) else None
        elif not isinstance(value, dict | list | tuple):
            keys.append(part)
    return keys


def _fields_at(section: Section, location: Sequence[Any]) -> list[str]:
    """The names of the fields that the section at a pydantic location has."""
    for part in location:
        variants = tuple(model for model in section.models if section.tag and part in tags(model, section.tag))
        if variants:
            section = replace(section, models=variants, tag=None)
        elif len(section.models) == 1 and part in section.models[0].model_fields:
            section = section_of(section.models[0], part)
        elif section.items:
            section = section.items
    return [name for model in section.models for name in model.model_fields]
