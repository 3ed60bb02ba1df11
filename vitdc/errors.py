"""The two ways a run ends badly, and the exit code each one stands for."""


class InputError(ValueError):
    """The user's input or configuration is wrong: exit code 2, one line, no traceback.

    The message says what is wrong, where it came from and what would be valid.
    """


class TrainingError(RuntimeError):
    """A correct configuration failed while running, e.g. a non-finite loss: exit code 1."""
