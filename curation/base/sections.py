"""The nested sections of a configuration model: which models a field holds, and which key names the variant."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ForwardRef, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo


@dataclass(frozen=True)
class Section:
    """A group of settings: one model, or a union of models in which a key, the tag, names the variant.

    A field of plain values (numbers, text, lists of them) has neither models nor items.
    """

    models: tuple[type[BaseModel], ...] = ()
    tag: str | None = None
    """The key that names the variant, such as `type`: the discriminator of the union."""
    allows_none: bool = False
    items: "Section | None" = None
    """The section that each element of a list, or each value of a mapping, is; None where they are plain values."""

    def variants(self, settings: Mapping[str, Any]) -> tuple[type[BaseModel], ...]:
        """The models that `settings` may be meant for: one if the section has one or the tag names one, else all."""
        if self.tag is None or self.tag not in settings:
            return self.models
        return tuple(model for model in self.models if settings[self.tag] in tags(model, self.tag))

    def field(self, settings: Mapping[str, Any], key: str) -> "tuple[Section, BaseModel | None]":
        """The section under `key` of `settings`, and its default; an empty section where the variant is not known."""
        match self.variants(settings):
            case (model,) if key in model.model_fields:
                return section_of(model, key), default_section(model.model_fields[key])
            case () if self.items:
                return self.items, None
        return Section(), None


@cache
def section_of(model: type[BaseModel], name: str) -> Section:
    """The section that the field `name` of `model` holds."""
    info = model.model_fields[name]
    return describe(info.annotation, tag=info.discriminator, owner=model)


def describe(annotation: Any, *, tag: object = None, owner: type[BaseModel] | None = None) -> Section:
    """The section that an annotation allows: a model, a tagged union, either of them or None, or lists of those.

    `tag` is the discriminator known so far. Names that the annotation quotes are those of the modules of `owner`'s classes.
    """
    if isinstance(annotation, ForwardRef):
        annotation = annotation.__forward_arg__
    if isinstance(annotation, str) and owner is not None:
        return describe(_named(annotation, owner), tag=tag, owner=owner)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Section(models=(annotation,), tag=tag if isinstance(tag, str) else None)
    if annotation is NoneType:
        return Section(allows_none=True)
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        tags_given = [extra.discriminator for extra in args[1:] if isinstance(extra, FieldInfo) and extra.discriminator]
        return describe(args[0], tag=tags_given[0] if tags_given else tag, owner=owner)
    if origin in (Union, UnionType):
        return _union([describe(member, tag=tag, owner=owner) for member in args])
    if isinstance(origin, type) and issubclass(origin, Mapping):
        args = args[1:]
    elif origin not in (tuple, list):
        return Section()
    items = _union([describe(element, owner=owner) for element in args if element is not ...])
    return Section(items=items if items.models or items.items else None)


def default_section(info: FieldInfo) -> BaseModel | None:
    """The default of a field if that is a section."""
    default = info.get_default(call_default_factory=True) if not info.is_required() else None
    return default if isinstance(default, BaseModel) else None


def tags(model: type[BaseModel], tag: str) -> tuple[object, ...]:
    """The values of the key `tag` that name `model`."""
    return get_args(model.model_fields[tag].annotation)


def _union(members: list[Section]) -> Section:
    models = tuple(dict.fromkeys(model for member in members for model in member.models))
    return Section(
        models=models,
        tag=next((member.tag for member in members if member.tag), None),
        allows_none=any(member.allows_none for member in members),
        items=next((member.items for member in members if member.items), None),
    )


def _named(name: str, owner: type[BaseModel]) -> Any:
    """The object called `name` in the module of `owner` or of one of its bases."""
    for base in owner.__mro__:
        if hasattr(sys.modules[base.__module__], name):
            return getattr(sys.modules[base.__module__], name)
    raise TypeError(f"{owner.__name__} has an annotation {name!r} that its module does not define: import or define it there")
