"""JSON files whose types are checked once, when they are read, against a declaration of their fields.

A declaration is one of

* a type: `str`, `bool`, `dict`; `int` for a whole number from 0 to 2**63 - 1, `float` for a number;
* a regular expression, which a text matches as a whole;
* a tuple of a declaration and None, for a value that may be null;
* a list of one declaration, for a list of such values;
* a dict of declarations by name, for an object that has at least these fields. A name that ends in "?" may be absent;
* a dict with a regular expression, for an object all of whose fields have such names.
"""

import json
import re
from pathlib import Path
from typing import Any

from cdgen.errors import CorpusError, first_line
from cdgen.storage.folder import check_regular
from cdgen.values import INT64_MAX

_NOUNS = {str: "text", bool: "true or false", int: "a whole number of 0 or more", float: "a number", dict: "an object"}


def read(path: Path, remedy: str) -> Any:
    """Return the content of a JSON file, unchecked, or None if there is no such file.

    Args:
        path: the file.
        remedy: what the user can do if it is damaged, for the message.
    Raises:
        CorpusError: the file cannot be read, or is not JSON.
    """
    try:
        check_regular(path)
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except RecursionError as error:
        raise CorpusError(f"{path}: cannot be read: it is nested too deeply; {remedy}") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise CorpusError(f"{path}: cannot be read: {reason}; {remedy}") from error


def fault(value: Any, declared: Any, field: str = "") -> str | None:
    """Return how a value differs from its declaration, such as "field 'seeds.fingerprint' is not text", or None."""
    if isinstance(declared, tuple):
        return None if value is None else fault(value, declared[0], field)
    if isinstance(declared, list):
        if not isinstance(value, list):
            return _is_not("a list", field)
        faults = (fault(each, declared[0], f"{field}[{at}]") for at, each in enumerate(value))
        return next(filter(None, faults), None)
    if isinstance(declared, dict):
        return _object_fault(value, declared, field)
    if isinstance(declared, re.Pattern):
        fits = isinstance(value, str) and declared.fullmatch(value)
        return None if fits else _is_not(f"of the form {declared.pattern}", field)
    return None if _fits(value, declared) else _is_not(_NOUNS[declared], field)


def _object_fault(value: Any, declared: dict[Any, Any], field: str) -> str | None:
    if not isinstance(value, dict):
        return _is_not(_NOUNS[dict], field)
    names, each = next(iter(declared.items()))
    if isinstance(names, re.Pattern):
        faults = [fault(name, names, f"{field}.{name}") for name in value]
        declared = dict.fromkeys(value, each)
    else:
        faults = []
    for name, each in declared.items():
        plain = name if name in value else name.removesuffix("?")
        path = f"{field}.{plain}" if field else plain
        if plain in value:
            faults.append(fault(value[plain], each, path))
        elif plain == name:
            faults.append(f"has no field {path!r}")
    return next(filter(None, faults), None)


def _is_not(expected: str, field: str) -> str:
    return f"field {field!r} is not {expected}" if field else f"is not {expected}"


def _fits(value: Any, declared: type) -> bool:
    if isinstance(value, bool):
        return declared is bool
    if isinstance(value, int) and declared in (int, float):
        return (0 if declared is int else -INT64_MAX) <= value <= INT64_MAX
    return isinstance(value, declared)
