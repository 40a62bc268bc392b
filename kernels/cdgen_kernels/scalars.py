"""Numbers that callers pass: one conversion for each kind, which never truncates, wraps around or rounds to zero."""

import operator
from numbers import Real
from typing import SupportsIndex

import torch

INT32_MAX = 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
FLOAT32_MAX = torch.finfo(torch.float32).max
FLOAT32_TINY = torch.finfo(torch.float32).smallest_normal  # smaller numbers lose digits, or become 0


def shown(value: object) -> str:
    """Return a value as messages show it: on one line, and short."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # Python refuses to print integers of thousands of digits
        return f"a {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."


def range_of(low: int, high: int) -> str:
    """Return the text that messages give for whole numbers from `low` to `high`."""
    bounds = (f"{low} to {high}" if high <= INT32_MAX else f"{low} to 2^63 - 1").replace(str(INT64_MIN), "-2^63")
    return f"a whole number from {bounds}"


def whole(name: str, value: SupportsIndex, low: int, high: int) -> int:
    """Return an integer within bounds, from anything that Python accepts as an index, except a bool.

    Raises:
        ValueError: it is not an integer, or out of bounds.
    """
    if type(value) is torch.SymInt:  # a size that torch.compile does not know yet
        return value  # type: ignore[return-value]
    try:
        number = None if _is_bool(value) else operator.index(value)
    except (TypeError, ValueError, RuntimeError):  # torch raises several
        number = None
    if number is None or not low <= number <= high:
        raise ValueError(f"{name} = {shown(value)}: must be {range_of(low, high)}")
    return number


def real(name: str, value: object, requirement: str = "a finite number") -> float:
    """Return a float from a real number, or from a tensor or array with one number; NaN and infinities are returned.

    Raises:
        ValueError: it is something else, for instance a bool or a string, or an integer that no float holds.
    """
    if type(value) is float:
        return value
    try:
        if isinstance(value, Real) and not _is_bool(value):
            return float(value)
        if getattr(value, "ndim", None) == 0 and not _is_bool(value):
            return float(value)  # type: ignore[arg-type]
    except (OverflowError, TypeError, ValueError, RuntimeError):
        pass
    raise ValueError(f"{name} = {shown(value)}: must be {requirement}")


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("torch.bool", "bool")
