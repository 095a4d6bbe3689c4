"""Errors of runs: work that does not fit, and work that was stopped."""

from curation.base.errors import UserError


class StaleArtifactError(UserError):
    """A directory holds work that was made from other settings or other inputs."""


class StoppedError(Exception):
    """A signal asked for the end, and the work so far is saved: the same command continues it."""
