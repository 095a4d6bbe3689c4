"""The base of all configuration: closed, frozen, and known by what decides a result."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """The base of every section: frozen, and closed to keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Fields that change how fast or where the work is done, never its result: they are no part of a fingerprint."""

    def deciding(self) -> dict[str, object]:
        """The settings that decide the result."""
        dumped = self.model_dump(mode="json", exclude=set(self.operational))
        for name in dumped:
            value = getattr(self, name)
            if isinstance(value, Config):
                dumped[name] = value.deciding()
        return dumped
