"""The two errors that a user can meet, and their messages as the command line prints them: one safe line."""

import unicodedata

_MESSAGE_LIMIT = 1000  # characters of a message that are shown
# Characters that embed, override or isolate a direction of text, by their bidirectional class.
_DIRECTIONS = ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")


class InputError(ValueError):
    """What was asked for cannot be done: a bad value, a missing file, models that do not fit. Exit code 2."""

    def __str__(self) -> str:
        return escaped(super().__str__())  # messages quote files, templates and names of unknown origin


class CorpusError(RuntimeError):
    """The output folder cannot be written, or its content cannot be trusted. Exit code 1."""

    def __str__(self) -> str:
        return escaped(super().__str__())


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an error's message, or the name of its type if the message is empty."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


def printable(message: str) -> str:
    """Return a message as one line that any terminal can show.

    Control characters and unpaired surrogates, which may come from a user's file, are escaped, so that they cannot
    move the cursor or clear the screen. The middle of a message that is very long is left out.
    """
    line = " ".join(message.split())
    if len(line) > _MESSAGE_LIMIT:
        line = f"{line[: _MESSAGE_LIMIT // 2]} [...] {line[-_MESSAGE_LIMIT // 2 :]}"
    return escaped(line)


def escaped(text: str) -> str:
    """Return a text with escapes for control characters, unpaired surrogates, and changes of the text's direction."""
    return "".join(_escape(character) if _is_unsafe(character) else character for character in text)


def _is_unsafe(character: str) -> bool:
    """Return whether a character is a control character, an unpaired surrogate, or changes the direction of text."""
    return unicodedata.category(character) in ("Cc", "Cs") or unicodedata.bidirectional(character) in _DIRECTIONS


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
