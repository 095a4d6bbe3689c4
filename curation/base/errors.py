"""Errors that a user can correct. Any other exception is a bug."""


class UserError(Exception):
    """A mistake in the user's input.

    The message consists of whole sentences: what was found, what is allowed, what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class ConfigError(UserError):
    """The configuration cannot be used."""


class DataError(UserError):
    """The data cannot be used."""
