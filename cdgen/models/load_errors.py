"""Any exception of reading a model's files becomes one line that names the model."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from cdgen.errors import CorpusError, InputError
from cdgen.models.quiet import quiet_transformers


@contextlib.contextmanager
def loading(source: str | Path, what: str = "the model") -> Iterator[None]:
    """Keep transformers quiet within the context, and turn any exception into an InputError with one line.

    Files of a model may hold anything, and transformers raises every kind of exception for them.

    Args:
        source: the model's folder or name, for the message.
        what: what is loaded, for the message.
    """
    try:
        with quiet_transformers():
            yield
    except (InputError, CorpusError):
        raise
    except Exception as error:
        raise InputError(f"{source}: cannot load {what}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the first line of an error's message, and the next one if the first only introduces it.

    The type is named if the message is a single word, as that of a KeyError.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return text if " " in text else f"{type(error).__name__}: {text}" if text else type(error).__name__
