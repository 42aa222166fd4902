"""The one exception a person is meant to read."""


class UsageError(ValueError):
    """Wrong usage or unreadable input: one line saying what was given, what was expected, what to do."""
