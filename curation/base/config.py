"""The base of all configuration: closed, frozen, and known by the settings that decide a result."""

from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from curation.base.sections import Section, section_of


class Config(BaseModel):
    """The base of every section: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how fast or where the work is done, never its result: they are no part of a fingerprint."""
    alternatives: ClassVar[tuple[frozenset[str], ...]] = ()
    """Groups of fields of which one is set: an override that sets one takes the place of the others in the file."""

    def fingerprint_fields(self) -> dict[str, object]:
        """The settings that decide the result and differ from their defaults, and the required ones, as JSON values.

        A setting that is added later leaves them equal where its default is kept. A nested section is reduced in the same way,
        relative to the defaults of its own class, and is left out where it is the field's default. The tag of a variant is kept
        by the section around it: a caller who asks a variant by itself adds the tag.
        """
        model = type(self)
        values, default_values = self.model_dump(mode="json"), _default_values(model)
        fields: dict[str, object] = {}
        for name, info in model.model_fields.items():
            if name in self.operational or name not in values:
                continue
            section, value = section_of(model, name), getattr(self, name)
            if info.is_required():
                fields[name] = _reduced(value, values[name], section)
                continue
            default = getattr(_defaults(model), name)
            reduced = _reduced(value, values[name], section, default)
            if reduced != _reduced(default, default_values[name], section, default):
                fields[name] = reduced
        return fields


def _reduced(value: object, dumped: Any, section: Section, default: object = None) -> object:
    """`dumped`, the JSON form of `value`, with every section in it reduced to its fingerprint fields.

    A variant is tagged unless it is that of `default`.
    """
    if isinstance(value, Config):
        fields = value.fingerprint_fields()
        tag = section.tag
        if tag is None or getattr(value, tag) == getattr(default, tag, None):
            return fields
        return {tag: getattr(value, tag), **fields}
    items = section.items or Section()
    if isinstance(value, tuple | list):
        return [_reduced(item, dumped_item, items) for item, dumped_item in zip(value, dumped, strict=True)]
    if isinstance(value, dict):
        return {key: _reduced(item, dumped[key], items) for key, item in zip(dumped, value.values(), strict=True)}
    return dumped


@cache
def _defaults(model: type[Config]) -> Config:
    """A model that holds its defaults and lacks the required fields."""
    return model.model_construct()


@cache
def _default_values(model: type[Config]) -> dict[str, Any]:
    """The defaults of a model as JSON values."""
    return _defaults(model).model_dump(mode="json")
