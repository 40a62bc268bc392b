"""The data files that a folder of `datasets` states in its own files. They must be in the folder.

`datasets` follows any name: to another folder, or to a server.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cdgen.errors import InputError, printable

_CARDS = ("README.md", ".huggingface.yaml")
_STATE = "state.json"


def check_stated_files(folder: Path) -> None:
    """Check the names that the card of a folder, or the state of a saved data set, gives to its data files.

    Raises:
        InputError: one leads out of the folder.
    """
    for name, stated in _stated(folder):
        # fsspec expands ~, and takes what precedes a colon for a protocol
        if os.path.isabs(stated) or ".." in Path(stated).parts or ":" in stated or stated.startswith("~"):
            raise InputError(
                f"{folder / name}: names the data file {printable(stated)!r}, which may be outside this folder; "
                "give the data files themselves"
            )


def _stated(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield the file that names a data file, and that name. What cannot be read is left to `datasets` to report."""
    for name in _CARDS:
        for config in _list(_metadata(folder / name).get("configs")):
            if isinstance(config, dict):
                yield from ((name, text) for key in ("data_files", "data_dir") for text in _strings(config.get(key)))
    try:
        state = json.loads((folder / _STATE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(state, dict):
        yield from ((_STATE, text) for text in _strings(state.get("_data_files")))


def _metadata(path: Path) -> dict[str, Any]:
    """Return the YAML that `datasets` reads from a card, or from a whole YAML file."""
    import yaml  # type: ignore[import-untyped,unused-ignore]  # datasets depends on it
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(path) if path.suffix == ".md" else yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _list(value: Any) -> Iterable[Any]:
    return value if isinstance(value, list) else []


def _strings(value: Any) -> Iterator[str]:
    """Yield the strings in a value of YAML or JSON, however deep."""
    if isinstance(value, str):
        yield value
    for each in value.values() if isinstance(value, dict) else _list(value):
        yield from _strings(each)
