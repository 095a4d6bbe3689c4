"""The base of all configuration: closed, frozen, and known by what decides a result."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """The base of every section: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how fast or where the work is done, never its result: they are no part of a fingerprint."""

    def fingerprint_fields(self) -> dict[str, object]:
        dumped = self.model_dump(mode="json", exclude=set(self.operational), exclude_defaults=True)
        for name in dumped:
            value = getattr(self, name)
            if isinstance(value, Config):
                dumped[name] = ({"type": value.type} if hasattr(value, "type") else {}) | value.fingerprint_fields()
        return dumped
