"""One line for any error."""

import pytest

from cdgen.errors import CorpusError, InputError, first_line


@pytest.mark.parametrize(
    "error, line",
    [(ValueError("one\ntwo"), "one"), (OSError("\n  two \nthree"), "two"), (ImportError(), "ImportError"),
     (RuntimeError(" \n"), "RuntimeError")],
    ids=repr,
)  # fmt: skip
def test_first_line(error: Exception, line: str) -> None:
    """An empty message is replaced by the name of the error's type."""
    assert first_line(error) == line


@pytest.mark.parametrize("kind", [InputError, CorpusError])
def test_messages_are_safe_to_print(kind: type[Exception]) -> None:
    """They may quote a name or a template that clears the screen."""
    assert str(kind("a\x1b[2J\nb \u202e\ud800 ä")) == "a\\x1b[2J\\nb \\u202e\\ud800 ä"
    assert str(kind(f"again: {kind(chr(27))}")) == "again: \\x1b"
