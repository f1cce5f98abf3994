"""The errors that are shown to the user as one line instead of a traceback."""


class UserError(Exception):
    """Something that the user can mend; the message says what is wrong, where, and what to do."""


class InputError(UserError, ValueError):
    """A value, a file or an argument that the user gave cannot be used."""


class TrainingDiverged(UserError):
    """The loss or the gradient is not finite."""


class TrainingInterrupted(UserError):
    """Training was asked to stop, and its checkpoint is saved."""


class WorkerLost(UserError):
    """The connection to another process of a distributed training was lost."""
