"""A file that a command writes besides its folders: checked before any work, and complete or absent afterwards."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cdgen.errors import InputError
from cdgen.storage.folder import OutputFolder
from cdgen.values import expanded

_BEGINNING = 16_000_000  # bytes; the JSON that commands write is far smaller
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)[\s>]", re.IGNORECASE)


class Content(NamedTuple):
    """What an output file holds. A file that exists is replaced only if it holds that, or nothing.

    Attributes:
        name: what it is, for messages.
        recognises: whether the beginning of a file, up to :data:`_BEGINNING` bytes of it, is of that kind.
    """

    name: str
    recognises: Callable[[bytes], bool]


HTML = Content("an HTML page", lambda data: _HTML.match(data) is not None)


def json_object(command: str, *keys: str) -> Content:
    """Return what a command writes as JSON: an object with these keys."""

    def recognises(data: bytes) -> bool:
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            return False
        return isinstance(found, dict) and found.keys() == {*keys}

    return Content(f"the JSON of {command}", recognises)


def check_output_file(option: str, name: str, content: Content) -> None:
    """Check that a file of this name can be written, and that it may be replaced if it exists.

    Args:
        option: the option that names the file, for messages.
        name: its value.
        content: what will be written.
    Raises:
        InputError: the name is empty or that of a folder, a link or a file with other content has this name, or the
            path leads through a file.
        CorpusError: there is no permission to write to the folder.
    """
    path = expanded(name)
    if os.path.basename(name) in ("", ".", "..") or path.is_dir():
        raise InputError(f"{option} {name or repr(name)}: is not the name of a file")
    if path.is_symlink():  # such as /dev/stdout
        raise InputError(f"{option} {name}: is a symbolic link, and would be replaced; name the file itself")
    if path.exists() and not _may_be_replaced(path, content):
        raise InputError(f"{option} {name}: is not {content.name}, and would be replaced; choose another name")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"{option} {name}: {nearest} is not a folder")
    OutputFolder(nearest).check_writable()


def write_output_file(name: str, data: bytes) -> Path:
    """Write a file, completely or not at all; return its path.

    Raises:
        CorpusError: the file cannot be written, for lack of space or permission.
    """
    path = expanded(name)
    # The folder is not entered: it may be that of a running experiment, whose temporary files must stay.
    OutputFolder(path.parent).write(path.name, data)
    return path


def write_json_file(name: str, value: Any) -> Path:
    """Write a value as a JSON file, completely or not at all; return its path."""
    return write_output_file(name, (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode())


def _may_be_replaced(path: Path, content: Content) -> bool:
    """Return whether this is a file that is empty or holds such content."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        data = file.read(_BEGINNING)
    return not data or content.recognises(data)
