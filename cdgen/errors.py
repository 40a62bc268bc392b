"""The two errors a user can meet; the command line turns each into one line and an exit code."""


class InputError(ValueError):
    """What was asked for cannot be done: a bad value, a missing file, models that do not fit. Exit code 2."""


class CorpusError(RuntimeError):
    """The output folder cannot be written, or its content cannot be trusted. Exit code 1."""


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the name of its type if the message is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)
