"""The HTML file that a command writes: checked before any work, and complete or absent afterwards."""

import os
import re
from pathlib import Path

from cdgen.errors import InputError
from cdgen.storage.folder import OutputFolder

_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype html|html)[\s>]", re.IGNORECASE)


def check_html_file(name: str) -> None:
    """Check that an HTML file of this name can be written. A file that exists may be replaced only if it is HTML.

    Args:
        name: value of `--out`.
    Raises:
        InputError: the name is empty or that of a folder, a link or a file that is not HTML has this name, or the path
            leads through a file.
        CorpusError: there is no permission to write to the folder.
    """
    path = Path(name)
    if os.path.basename(name) in ("", ".", "..") or path.is_dir():
        raise InputError(f"--out {name or repr(name)}: is not the name of a file")
    if path.is_symlink():  # such as /dev/stdout
        raise InputError(f"--out {name}: is a symbolic link, and would be replaced; name the file itself")
    if path.exists() and not _is_html(path):
        raise InputError(f"--out {name}: is a file that is not HTML, and would be replaced; choose another name")
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise InputError(f"--out {name}: {nearest} is not a folder")
    OutputFolder(nearest).check_writable()


def write_html_file(name: str, page: str) -> None:
    """Write a page, completely or not at all.

    Raises:
        CorpusError: the file cannot be written, for lack of space or permission.
    """
    # The folder is not entered: it may be that of a running experiment, whose temporary files must stay.
    OutputFolder(Path(name).parent).write(Path(name).name, page.encode())


def _is_html(path: Path) -> bool:
    """Return whether this is a file that is empty or begins like an HTML page."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        start = file.read(1000)
    return not start or _HTML.match(start) is not None
