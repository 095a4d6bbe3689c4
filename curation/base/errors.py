"""The errors a user can mend. Anything else that is raised is a bug."""


class UserError(Exception):
    """A mistake in what the user gave us.

    The message is whole sentences: what was found, what is allowed, what to do. The command line prints it without a
    traceback and exits with code 2.
    """


class ConfigError(UserError):
    """The configuration cannot be used."""


class DataError(UserError):
    """The data cannot be used."""
