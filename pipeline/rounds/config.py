"""Settings of rounds: a class for each type of round."""

from typing import Any, Literal

from pydantic import SerializerFunctionWrapHandler, model_serializer

from curation.base.config import Config

Overrides = dict[str, Any]


class CurateConfig(Config):
    """A curation round: embed, cluster, dedup, label, select, train, evaluate.

    Each section holds what differs in this round from the section of the run.
    """

    type: Literal["curate"] = "curate"
    embed: Overrides | None = None
    cluster: Overrides | None = None
    dedup: Overrides | None = None
    label: Overrides | None = None
    select: Overrides | None = None
    train: Overrides | None = None
    evaluate: Overrides | None = None

    @model_serializer(mode="wrap")
    def _without_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """As it was given: a section that is null is another thing than one that is not there."""
        given = self.model_fields_set | {"type"}
        return {name: value for name, value in serialize(self).items() if name in given}

    def overrides(self) -> dict[str, Overrides | None]:
        """The sections that were given."""
        return {name: getattr(self, name) for name in sorted(self.model_fields_set - {"type"})}


RoundConfig = CurateConfig
