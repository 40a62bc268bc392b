"""stages.json: the stages of an experiment, in the order in which they run, and which of them are finished.

This module alone reads and writes the file. `cdgen run` writes it before the first stage, so that an unfinished
experiment is known to be unfinished.
"""

import contextlib
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from cdgen.errors import CorpusError
from cdgen.storage import checked_json
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder, file_sha256

NAME = "stages.json"
KIND, _VERSION = "experiment", 1
_REMEDY = "delete it and rerun: every stage then checks its own folder"
_FIELDS: dict[str, Any] = {  # a declaration of :mod:`cdgen.storage.checked_json`
    "recipe": str,
    "stages": [
        {
            "name": str,
            "argv": [str],
            "inputs": [str],
            "digest": (str, None),
            "seconds": float,
            "finished": (str, None),
        }
    ],
}


class StageEntry(TypedDict):
    """A stage in stages.json."""

    name: str  # name of the stage and of its folder
    argv: list[str]  # arguments of `cdgen`
    inputs: list[str]  # names of the stages that it reads from
    digest: str | None  # see :func:`digest`, when the stage was finished last; None if it never was
    seconds: float  # duration of all attempts, except for those that were killed
    finished: str | None  # when it was finished: UTC in ISO format


class Experiment(TypedDict):
    """The content of stages.json."""

    kind: str
    format_version: int
    recipe: str  # name of the recipe
    stages: list[StageEntry]


def new(recipe: str, stages: list[StageEntry]) -> Experiment:
    """Return the content of stages.json."""
    return {"kind": KIND, "format_version": _VERSION, "recipe": recipe, "stages": stages}


def read(folder: Path) -> Experiment | None:
    """Read the stages of an experiment.

    Returns:
        the content of the file; None if there is no such file, or one that an earlier version of cdgen wrote, which
        held digests alone.
    Raises:
        CorpusError: the file cannot be read, is damaged, or is of a later format version.
    """
    path = folder / NAME
    found = checked_json.read(path, _REMEDY)
    if found is None and not path.exists():
        return None
    if not isinstance(found, dict):
        raise CorpusError(f"{path}: is damaged; {_REMEDY}")
    if "kind" not in found and all(isinstance(digest, str) for digest in found.values()):
        return None
    version = found.get("format_version")
    if found.get("kind") == KIND and version != _VERSION:
        raise CorpusError(f"{path}: has format version {version!r}, but this version of cdgen reads {_VERSION}")
    if found.get("kind") != KIND or checked_json.fault(found, _FIELDS):
        raise CorpusError(f"{path}: is damaged; {_REMEDY}")
    return cast(Experiment, found)


def write(folder: Path, experiment: Experiment) -> None:
    """Write the stages of an experiment, completely or not at all.

    Raises:
        CorpusError: the file cannot be written.
    """
    OutputFolder(folder).write(NAME, (json.dumps(experiment, indent=1) + "\n").encode())


def digest(folder: Path, argv: Sequence[str], inputs: Sequence[str]) -> str:
    """Return a sha256, hexadecimal, over the command of a stage and the content of the stages that it reads from.

    Args:
        folder: the folder of the experiment.
        argv: arguments of `cdgen`.
        inputs: names of the stages that it reads from.
    """
    content = json.dumps([list(argv), [_fingerprint(folder / name) for name in inputs]])
    return hashlib.sha256(content.encode()).hexdigest()


def is_finished(folder: Path, stage: StageEntry) -> bool:
    """Return whether a stage has its output, and neither its command nor what it reads from has changed since."""
    try:
        has_output = _fingerprint(folder / stage["name"]) is not None
        return has_output and stage["digest"] == digest(folder, stage["argv"], stage["inputs"])
    except (OSError, ValueError):  # no permission, or a name that no folder can have
        return False


def _fingerprint(folder: Path) -> str | None:
    """Return the sha256 of a stage's manifest, which holds the checksums of its files, or None if it has none."""
    for name in sorted({*manifests.FILE_NAMES.values()}):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return file_sha256(folder / name)
    return None
