"""The stages of an experiment, and what is known of those that have run.

stages.json            the stages in the order in which they run, with their commands
STAGE/_stage.json      the record of a stage in its own folder: whether, when, where and in what time it was finished

A record travels with its folder: a stage that was finished on another machine is finished here once its folder is
copied. `cdgen run` writes stages.json before the first stage, so an unfinished experiment is known to be unfinished.
This module alone reads and writes these files.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, cast

from cdgen.errors import CorpusError
from cdgen.storage import checked_json
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder

NAME = manifests.STAGES
RECORD_NAME = "_stage.json"  # readers of data sets skip names that begin with "_"
KIND, _VERSION = manifests.EXPERIMENT, 2
_RECORD_KIND, _RECORD_VERSION = "stage", 1
_REMEDY = "delete it and rerun: every stage then checks its own folder"
# Declarations of :mod:`cdgen.storage.checked_json`
_FIELDS: dict[str, Any] = {
    "recipe": str,
    "out": str,
    "stages": [{"name": str, "argv": [str], "inputs": [str]}],
}
_RECORD_FIELDS: dict[str, Any] = {
    "digest": (str, None),
    "seconds": float,
    "finished": (str, None),
    "machine": str,
    "out": str,
}


class PlannedStage(TypedDict):
    """A stage in stages.json."""

    name: str  # name of the stage and of its folder
    argv: list[str]  # arguments of `cdgen`
    inputs: list[str]  # names of the stages that it reads from


class Record(TypedDict):
    """The content of a stage's _stage.json."""

    digest: str | None  # see :func:`digest`, when the stage was finished last; None if it never was
    seconds: float  # duration of all attempts until it was finished, except for those that were killed
    finished: str | None  # when it was finished: UTC in ISO format
    machine: str  # GPU, or CPU and threads, of the last attempt
    out: str  # the experiment's folder during the last attempt


class StageEntry(PlannedStage):
    """A stage and its record."""

    record: Record | None  # None if it has not been started


class Experiment(TypedDict):
    """The content of stages.json, with the records of its stages."""

    recipe: str  # name of the recipe
    out: str  # the folder that the commands were planned for; it may have been moved since
    stages: list[StageEntry]


def read(folder: Path) -> Experiment | None:
    """Read the stages of an experiment, and their records.

    Returns:
        the content of the files; None if there is no stages.json, or one that an earlier version of cdgen wrote.
    Raises:
        CorpusError: a file cannot be read, is damaged, or is of a later format version.
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
    if found.get("kind") == KIND and version == 1:
        return None
    if found.get("kind") == KIND and version != _VERSION:
        raise CorpusError(
            f"{path}: has format version {version!r}, but this version of cdgen reads {_VERSION}; {_REMEDY}"
        )
    if found.get("kind") != KIND or checked_json.fault(found, _FIELDS):
        raise CorpusError(f"{path}: is damaged; {_REMEDY}")
    entries = [cast(StageEntry, stage | {"record": read_record(folder / stage["name"])}) for stage in found["stages"]]
    return {"recipe": found["recipe"], "out": found["out"], "stages": entries}


def write(folder: Path, recipe: str, out: str, stages: Sequence[PlannedStage]) -> None:
    """Write stages.json, completely or not at all.

    Args:
        folder: the folder of the experiment.
        recipe: name of the recipe.
        out: the folder as the stages' commands name it.
        stages: the stages in the order in which they run.
    Raises:
        CorpusError: the file cannot be written.
    """
    content = {"kind": KIND, "format_version": _VERSION, "recipe": recipe, "out": out, "stages": list(stages)}
    OutputFolder(folder).write(NAME, (json.dumps(content, indent=1) + "\n").encode())


def read_record(folder: Path) -> Record | None:
    """Read the record of a stage.

    Args:
        folder: the folder of the stage.
    Returns:
        its record; None if it has none that can be used. The stage's command then checks the folder itself.
    """
    try:
        found = checked_json.read(folder / RECORD_NAME, "")
    except (CorpusError, ValueError):  # it cannot be read, or the name is one that no folder can have
        return None
    header = {"kind": _RECORD_KIND, "format_version": _RECORD_VERSION}
    if not isinstance(found, dict) or any(found.get(name) != value for name, value in header.items()):
        return None
    if checked_json.fault(found, _RECORD_FIELDS) or not 0 <= found["seconds"] < math.inf:
        return None
    return cast(Record, {name: found[name] for name in _RECORD_FIELDS})


def write_record(folder: Path, record: Record) -> None:
    """Write the record of a stage, completely or not at all.

    Raises:
        CorpusError: the file cannot be written.
    """
    content = {"kind": _RECORD_KIND, "format_version": _RECORD_VERSION} | record
    OutputFolder(folder).write(RECORD_NAME, (json.dumps(content, indent=1) + "\n").encode())


def digest(folder: Path, argv: Sequence[str], inputs: Sequence[str], out: str) -> str:
    """Return a sha256, hexadecimal, over the command of a stage and the content of the stages that it reads from.

    It does not depend on where the experiment's folder is.

    Args:
        folder: the folder of the experiment.
        argv: arguments of `cdgen`.
        inputs: names of the stages that it reads from.
        out: the folder as `argv` names it.
    Raises:
        CorpusError: a manifest cannot be read.
    """
    prefix = re.compile(f"(^|=){re.escape(out.rstrip(os.sep) + os.sep)}")
    command = [prefix.sub(r"\1OUT/", word) for word in argv]
    content = json.dumps([command, [_fingerprint(folder / name) for name in inputs]])
    return hashlib.sha256(content.encode()).hexdigest()


def is_finished(folder: Path, stage: StageEntry, out: str) -> bool:
    """Return whether a stage has all its files, and neither its command nor what it reads from has changed since.

    Args:
        folder: the folder of the experiment.
        stage: the stage.
        out: the folder as the stage's command names it.
    """
    try:
        has_output = manifests.is_whole(folder / stage["name"])
        finished = stage["record"]["digest"] if stage["record"] else None
        return has_output and finished == digest(folder, stage["argv"], stage["inputs"], out)
    except (CorpusError, ValueError):  # it cannot be read, or is a name that no folder can have
        return False


def _fingerprint(folder: Path) -> str | None:
    """Return a sha256 over the content of a stage's files, or None if it has no manifest."""
    manifest = manifests.read_any(folder)
    if manifest is None:
        return None
    return hashlib.sha256(json.dumps(manifests.content(manifest), sort_keys=True).encode()).hexdigest()
