"""Templates that compute the fields of a form from the records of a file."""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cdgen.errors import InputError, first_line
from cdgen.values import shown

if TYPE_CHECKING:
    import jinja2

_MOST_CHARACTERS = 1_000_000  # longest text that a template may give


def is_template(text: str) -> bool:
    """Return whether a text is a Jinja template rather than the name of a field."""
    return "{{" in text or "{%" in text


def check_template(where: str, text: str) -> None:
    """Check a template's syntax.

    Raises:
        InputError: it is not a Jinja template; the message begins with `where`.
    """
    if is_template(text):
        _compiled(where, text)


def render(where: str, text: str, record: Mapping[str, Any], place: str) -> Any:
    """Return the value of a template for a record: the value of a field, or the text that a Jinja template gives.

    Args:
        where: the template's name, for messages.
        text: the name of a field of the record, or a Jinja template.
        record: the fields of the record.
        place: the record's file and place, for messages.
    Raises:
        InputError: the record lacks a field, or the template fails.
    """
    if not is_template(text):
        if text not in record:
            known = ", ".join(str(name) for name in list(record)[:8])
            raise InputError(f"{place} has no field {text!r}, which {where} needs; it has {known}")
        return record[text]
    pieces, size = [], 0
    try:
        for piece in _compiled(where, text).generate(record):
            pieces.append(piece)
            size += len(piece)
            if size > _MOST_CHARACTERS:  # a loop may write without end
                break
    except Exception as error:  # a template calls methods of values that may be of any type
        raise InputError(f"{place}: {where} = {shown(text)} fails: {first_line(error)}") from error
    if size > _MOST_CHARACTERS:
        raise InputError(f"{place}: {where} has more than {_MOST_CHARACTERS:,} characters")
    return "".join(pieces)


@functools.lru_cache(maxsize=256)
def _compiled(where: str, text: str) -> "jinja2.Template":
    environment = _environment()
    try:
        return environment.from_string(text)
    except Exception as error:  # Python's own compiler fails too, if the template is nested too deeply
        raise InputError(f"{where} = {shown(text)}: is not a Jinja template: {first_line(error)}") from error


@functools.cache
def _environment() -> "jinja2.Environment":
    """Return Jinja's sandbox, since task files may come from elsewhere."""
    try:
        import jinja2
        import jinja2.sandbox
    except ImportError as error:
        raise InputError('templates need jinja2: pip install ".[eval]"') from error
    found = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, finalize=_checked
    )
    found.getattr = found.getitem  # so that `q.items` is the field of that name, if there is one, and not a method
    found.filters["regex_replace"] = lambda text, pattern, new: re.sub(pattern, new, text)
    del found.globals["lipsum"], found.filters["random"]  # a rerun would find other items
    return found


def _checked(value: Any) -> Any:
    """Return a value that a template shows, unless its text would be "None" or the address of an object in memory."""
    import jinja2

    if value is None:
        raise ValueError("it shows a value that is null")
    if callable(value) and not isinstance(value, jinja2.Undefined):  # those raise an error of their own
        name = getattr(value, "__name__", type(value).__name__)
        raise ValueError(f"it shows the function {name}, not a value; call it, or show a field")
    if hasattr(value, "__next__"):
        raise ValueError(f"it shows a {type(value).__name__}, not a value; add |join(' ') or |list")
    return value
