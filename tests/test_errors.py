"""One line for any error."""

import pytest

from cdgen.errors import first_line


@pytest.mark.parametrize(
    "error, line",
    [(ValueError("one\ntwo"), "one"), (OSError("\n  two \nthree"), "two"), (ImportError(), "ImportError"),
     (RuntimeError(" \n"), "RuntimeError")],
    ids=repr,
)  # fmt: skip
def test_first_line(error: Exception, line: str) -> None:
    """An empty message is replaced by the name of the error's type."""
    assert first_line(error) == line
