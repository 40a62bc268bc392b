"""What a prepared corpus is made from, and the first difference between two corpora in that."""

import hashlib
import json
import os
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from cdgen import __version__
from cdgen.corpus.records import HUB
from cdgen.errors import InputError
from cdgen.prepare.by_file import UNITS
from cdgen.prepare.sources import Source, label
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import file_sha256
from cdgen.storage.manifest import Manifest

_VERSION = 1  # increase it if the same sources and settings give other files
_COUNTED = ("inputs", "paths", "empty", "duplicates", "over_budget", "train", "test", "seeds")


class Input(NamedTuple):
    """A file to read."""

    source: int  # number of its source
    path: str


def describe(sources: list[Source], inputs: list[Input], settings: dict[str, Any]) -> Manifest:
    """Return a manifest without counts. Its fingerprint does not depend on where the files are."""
    described = []
    for number, source in enumerate(sources):
        read = None if source.read is None else getattr(source.read, "__name__", type(source.read).__name__)
        about: dict[str, Any] = asdict(source) | {"read": read, "inputs": []}
        paths = [path for other, path in inputs if other == number]
        for path in paths:
            about["inputs"].append({"path": path, "label": label(path, paths)} | _size_and_sha256(path))
        described.append(about)
    compared = [
        about
        | {"paths": None, "inputs": [{name: one[name] for name in ("label", "sha256")} for one in about["inputs"]]}
        for about in described
    ]
    digest = hashlib.sha256(json.dumps([_VERSION, settings, compared]).encode()).hexdigest()
    return manifests.new(manifests.PREPARED) | {
        "settings": settings,
        "sources": described,
        "fingerprint": f"sha256:{digest}",
        "versions": {"cdgen": __version__, "pyarrow": pa.__version__, "python": platform.python_version()},
    }


def _size_and_sha256(path: str) -> dict[str, Any]:
    """Return size and sha256 of a file or of a folder's files; None for data from the hub.

    Raises:
        InputError: a file cannot be read.
    """
    if path.startswith(HUB):
        return {"bytes": None, "sha256": None}
    try:
        if not os.path.isdir(path):
            return {"bytes": os.path.getsize(path), "sha256": file_sha256(path)}
        inside = sorted(file for file in Path(path).rglob("*") if file.is_file())
        digests = json.dumps([(str(file.relative_to(path)), file_sha256(file)) for file in inside])
        size = sum(file.stat().st_size for file in inside)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read: {error.strerror}") from error
    return {"bytes": size, "sha256": hashlib.sha256(digests.encode()).hexdigest()}


def difference(before: Manifest, now: Manifest) -> str:
    """Return the first difference, for a message.

    Args:
        before: the manifest of a finished corpus.
        now: the manifest of a corpus that is to be written; it may lack counts.
    """
    earlier, later = ({"split_by": UNITS[0]} | manifest["settings"] for manifest in (before, now))
    for name, value in later.items():
        if earlier.get(name) != value:
            return f"{name} = {earlier.get(name)}, but now {name} = {value}"
    old = {source["name"]: source for source in before["sources"]}
    new = {source["name"]: json.loads(json.dumps(source)) for source in now["sources"]}
    for verb, others in (("no longer has", old.keys() - new.keys()), ("did not have", new.keys() - old.keys())):
        if others:
            return f"it {verb} the source {min(others)}"
    found = (_source_difference(old[name], source) for name, source in new.items())
    return next((text for text in found if text), "written by another version of cdgen")


def _source_difference(before: dict[str, Any], now: dict[str, Any]) -> str | None:
    source = f"source {now['name']}"
    for name, value in now.items():
        if name not in _COUNTED and before.get(name) != value:
            return f"{source}: {name} = {before.get(name)}, but now {name} = {value}"
    old, new = _digests(before), _digests(now)
    if len(old) != len(new):
        return f"{source}: {len(old)} files, but now {len(new)}"
    changed = next((name for name in new if new[name] != old.get(name)), None)
    return changed and f"{source}: the content of {changed} has changed"


def _digests(source: dict[str, Any]) -> dict[str, Any]:
    """Return the sha256 of a source's files by name."""
    return {one["label"]: one["sha256"] for one in source["inputs"]}
