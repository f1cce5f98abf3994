"""The errors that are shown to the user as a single line instead of a traceback."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message says what, where and what to do."""


class StoppedError(InputError):
    """The user, or the system, asked for an end."""
