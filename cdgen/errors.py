"""The two errors a user can meet; the command line turns each into one line and an exit code."""


class InputError(ValueError):
    """What was asked for cannot be done: a bad value, a missing file, models that do not fit. Exit code 2."""


class CorpusError(RuntimeError):
    """The output folder cannot be written, or what stands in it cannot be trusted. Exit code 1."""
