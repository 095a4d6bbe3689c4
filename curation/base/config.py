"""The base class of all configuration: frozen, closed to unknown keys, with the fields that a fingerprint covers."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Base class of every section of a configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    operational: ClassVar[frozenset[str]] = frozenset()
    """Names of fields that change how fast or where the work is done, never its result; a fingerprint leaves them out."""

    def fingerprint_fields(self) -> dict[str, object]:
        """The settings that decide the result, as JSON values by name."""
        dumped = self.model_dump(mode="json", exclude=set(self.operational))
        for name in dumped:
            value = getattr(self, name)
            if isinstance(value, Config):
                dumped[name] = value.fingerprint_fields()
        return dumped
