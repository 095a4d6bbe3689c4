"""Layers of settings laid over one another, as the model of the configuration asks.

A layer is what is written in one place: a file, the file it builds on, or the words of one command line. A later layer wins key
by key, with three exceptions that only the model knows:

- a section whose variant changes (`train.method.type`, `select.strategy`) starts afresh; only settings that all variants of
  the section inherit from one class, such as the budget of every selector, stay as the earlier layers have them;
- a setting takes the place of its alternatives (`select.budget` that of `select.fraction`);
- null over a section that may not be null brings its defaults back.
"""

from typing import Any

from pydantic import BaseModel

from curation.base.config import Config
from curation.base.sections import Section, describe

Settings = dict[str, Any]


class _Replacement(dict[str, Any]):
    """A section that takes the place of that of the earlier layers: null and then settings, in one layer."""


def merge(base: Settings, layer: Settings, model: Any) -> Settings:
    """`layer` on top of `base`, the earlier layers. `model` is a configuration class or a tagged union of some.

    Every section of the result names its variant, if only by the tag of the default one.
    """
    return _merge(base, layer, describe(model))


def combine(earlier: Settings, later: Settings, model: Any) -> Settings:
    """Two halves of one layer, of which the later wins.

    A variant changes only where both name one, so that the order of `type=byol` and `momentum=0.9` does not matter.
    Alternatives stay side by side, for the validation to refuse.
    """
    return _combine(earlier, later, describe(model))


def _merge(base: Settings, layer: Settings, section: Section, default: BaseModel | None = None) -> Settings:
    if section.tag and default is not None:
        base = {section.tag: getattr(default, section.tag), **base}
    base = _without_other_variant(base, layer, section)
    settings = {**base, **layer}
    result = _without_alternatives(base, layer, section.variants(settings))
    for key, value in layer.items():
        inner, inner_default = section.field(settings, key)
        if value is None and (inner.models or inner.items) and not inner.allows_none:
            result.pop(key, None)
        elif isinstance(value, dict):
            earlier = result.get(key)
            below = earlier if isinstance(earlier, dict) and not isinstance(value, _Replacement) else {}
            result[key] = _merge(below, value, inner, inner_default)
        elif isinstance(value, list) and inner.items:
            result[key] = [_merge({}, item, inner.items) if isinstance(item, dict) else item for item in value]
        else:
            result[key] = value
    return result


def _combine(earlier: Settings, later: Settings, section: Section) -> Settings:
    result = type(earlier)(_without_other_variant(earlier, later, section))
    for key, value in later.items():
        if not isinstance(value, dict):
            result[key] = value
        elif isinstance(old := result.get(key), dict):
            result[key] = _combine(old, value, section.field({**earlier, **later}, key)[0])
        else:
            result[key] = _Replacement(value) if key in result else value
    return result


def _without_other_variant(base: Settings, layer: Settings, section: Section) -> Settings:
    """`base` without the settings of its variant if `layer` names another one; those that all variants share stay."""
    tag = section.tag
    if tag is None or tag not in base or layer.get(tag, base[tag]) == base[tag]:
        return base
    shared_bases = set.intersection(*(set(model.__mro__) for model in section.models))
    shared = {name for model in shared_bases if issubclass(model, Config) for name in model.model_fields}
    return {key: value for key, value in base.items() if key in shared}


def _without_alternatives(base: Settings, layer: Settings, models: tuple[type[BaseModel], ...]) -> Settings:
    """`base` without the settings that an alternative in `layer` takes the place of."""
    groups = [group for model in models if issubclass(model, Config) for group in model.alternatives]
    displaced: set[str] = set()
    for group in groups:
        chosen = {key for key in group if layer.get(key) is not None}
        displaced |= group - chosen if chosen else set()
    return {key: value for key, value in base.items() if key not in displaced}
