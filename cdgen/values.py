"""Check numbers, switches and paths that callers pass, and convert scalars of numpy and torch to Python's."""

import numbers
import operator
import os
from pathlib import Path
from typing import Any

from cdgen.errors import InputError

INT32_MAX, INT64_MAX = 2**31 - 1, 2**63 - 1
FLOAT32_MIN = 2.0**-126  # smallest normal number above 0
FLOAT32_MAX = (2 - 2.0**-23) * 2.0**127
_SHOWN = 100  # characters of a value in a message


def integer(name: str, value: Any, low: int, high: int) -> int:
    """Return an integer between two bounds, both included.

    Raises:
        InputError: the value is no integer, such as True or 1.5, or out of range; the message begins with `name`.
    """
    try:
        number = operator.index(_number(value))
    except (TypeError, ValueError):
        raise InputError(f"{name} = {shown(value)}: must be a whole number") from None
    if not low <= number <= high:
        raise InputError(f"{name} = {shown(number)}: must be {low} to {high}")
    return number


def real(name: str, value: Any, low: float = -FLOAT32_MAX, high: float = FLOAT32_MAX) -> float:
    """Return a number between two bounds, both included, as a float.

    Raises:
        InputError: the value is no number, such as True or "1", out of range, or so small that float32, in which the
            ops compute, does not hold it; the message begins with `name`.
    """
    plain = _number(value)
    is_number = isinstance(plain, numbers.Real)
    if not is_number:
        raise InputError(f"{name} = {shown(value)}: must be a number")
    if not low <= plain <= high:  # exact for integers of any size; false for NaN
        raise InputError(f"{name} = {shown(plain)}: must be {low:.6g} to {high:.6g}")
    number = float(plain) + 0.0  # never -0.0
    if number and abs(number) < FLOAT32_MIN:
        raise InputError(f"{name} = {number}: is too small for float32; use 0, or at least {FLOAT32_MIN:.6g}")
    return number


def switch(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        InputError: the value is neither, such as 1; the message begins with `name`.
    """
    found = _scalar(value)
    if not isinstance(found, bool):
        raise InputError(f"{name} = {shown(value)}: must be True or False")
    return found


def path(name: str, value: Any, kind: str) -> Path:
    """Return the name of a file or folder as a path, with `~` as in :func:`expanded`.

    Args:
        name: the argument, with which messages begin.
        value: what was passed.
        kind: what it should be, such as "folder".
    Raises:
        InputError: the value is neither a string nor a path, or it is empty.
    """
    if not isinstance(value, str | os.PathLike):
        raise InputError(f"{name} = {shown(value)}: must be the name of a {kind}")
    if not os.fspath(value):
        raise InputError(f"{name} = '': is empty; name a {kind}, or . for the current folder")
    return expanded(value)


def expanded(name: str | os.PathLike[str]) -> Path:
    """Return a path in which the home folder has replaced a leading `~`. An unknown user's `~name` stays as it is."""
    try:
        return Path(os.path.expanduser(name))
    except ValueError:  # a null character, or one that no name of a user has
        return Path(name)


def shown(value: Any) -> str:
    """Return a value for a message: one line of limited length."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python does not print integers of thousands of digits
        text = f"({type(value).__name__} of thousands of digits)"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _scalar(value: Any) -> Any:
    """Return a scalar of numpy or torch as Python's, None for any other array, and other values unchanged."""
    if not hasattr(value, "ndim"):
        return value
    return value.item() if value.ndim == 0 else None


def _number(value: Any) -> Any:
    """Return a scalar like :func:`_scalar`, but None for True and False, which Python takes for numbers."""
    found = _scalar(value)
    return None if isinstance(found, bool) else found
