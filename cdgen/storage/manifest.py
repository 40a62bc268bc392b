"""Manifests: JSON files that say what an output folder holds and what it was made from.

Every manifest has a `kind` and a `format_version`. Generated corpora, prepared corpora and tokenizers have a
`manifest.json`; a training run has a `run.json` (see :mod:`cdgen.storage.runs`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdgen.errors import CorpusError, InputError, first_line
from cdgen.storage.folder import OutputFolder

NAME = "manifest.json"
FORMAT_VERSION = 2  # version 1: see _upgrade

GENERATED, PREPARED, TOKENIZER, RUN = "generated", "prepared", "tokenizer", "run"
_NOUNS = {
    GENERATED: "a generated corpus",
    PREPARED: "a prepared corpus",
    TOKENIZER: "a tokenizer",
    RUN: "a training run",
}
_FIELDS = {  # every manifest of a kind has these, in every format version
    GENERATED: ("settings", "models", "seeds", "environments", "complete", "shards"),
    PREPARED: ("settings", "sources", "fingerprint", "counts", "files"),
    TOKENIZER: ("corpus_sha256", "fingerprint", "entries", "files"),
    RUN: ("config", "inputs", "environments", "checkpoints"),
}

Manifest = dict[str, Any]


def new(kind: str) -> Manifest:
    """Return the fields that manifests of all kinds share."""
    return {"kind": kind, "format_version": FORMAT_VERSION}


def read(path: Path, kind: str, remedy: str = "choose another folder") -> Manifest | None:
    """Read a manifest. One of format version 1 is returned as if it were of the current version.

    Args:
        path: the manifest's file.
        kind: the kind that is expected.
        remedy: what the user can do if the file is damaged or of another kind, for the message.
    Returns:
        The manifest, or None if there is no such file
    Raises:
        CorpusError: the file cannot be read, is damaged, is of another kind, or is of a later format version.
    """
    try:
        manifest = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: cannot be read: {first_line(error)}; {remedy}") from error
    fields: Manifest = manifest if isinstance(manifest, dict) else {}
    version = fields.get("format_version", 1)
    if version == 1:
        fields = _upgrade(fields)
    found = _kind(fields)
    if version not in (1, FORMAT_VERSION) and found in (None, kind):
        raise CorpusError(
            f"{path}: has format version {version}, but this version of cdgen reads 1 to {FORMAT_VERSION}; {remedy}"
        )
    if found is None:
        raise CorpusError(f"{path}: is not a manifest of {_NOUNS[kind]}; {remedy}")
    if found != kind:
        raise CorpusError(f"{path}: describes {_NOUNS.get(found, found)}, not {_NOUNS[kind]}; {remedy}")
    if absent := [name for name in _FIELDS[kind] if name not in fields]:
        raise CorpusError(f"{path}: has no field {absent[0]!r}; {remedy}")
    return new(kind) | fields | new(kind)


def _upgrade(manifest: Manifest) -> Manifest:
    """Return a manifest of format version 1, which had no `kind`, with the current names of its fields."""
    manifest = {"environments" if name == "runs" else name: value for name, value in manifest.items()}
    shards = manifest.get("shards")
    if isinstance(shards, list) and all(isinstance(shard, dict) for shard in shards):
        manifest["shards"] = [
            {"environment" if name == "run" else name: value for name, value in shard.items()} for shard in shards
        ]
    return manifest


def _kind(manifest: Manifest) -> str | None:
    """Return the kind that a manifest names; in version 1, which named none, the kind whose fields it has."""
    if "kind" in manifest:
        return str(manifest["kind"])
    return next((kind for kind, fields in _FIELDS.items() if manifest.keys() >= set(fields)), None)


def encode(manifest: Manifest) -> bytes:
    """Return the content of a manifest's file."""
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode()


def write(folder: OutputFolder, manifest: Manifest, name: str = NAME) -> None:
    """Write a manifest, whole or not at all."""
    folder.write(name, encode(manifest))


def check_not_orphaned(folder: Path, pattern: str, name: str = NAME, remedy: str = "choose another folder") -> None:
    """Raise CorpusError if a folder without a manifest holds files that match a glob pattern."""
    if present := sorted(folder.glob(pattern)):
        raise CorpusError(f"{folder}: holds {present[0].name} but no {name}; {remedy}")


def check_same(
    folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str = "or choose another folder"
) -> None:
    """Raise InputError for the first setting that differs from the one that the folder was started with."""
    for name in dict.fromkeys((*now, *before)):
        if before.get(name) != now.get(name):
            raise InputError(
                f"{folder}: was started with {name} = {before.get(name)}, but now {name} = {now.get(name)}; "
                f"use the same value, {remedy}"
            )


def is_intact(folder: OutputFolder, files: Mapping[str, str], overwrite: bool = False) -> bool:
    """Return whether all files are there, with the sha256 that they were written with.

    Args:
        folder: the folder that holds the files.
        files: sha256 by file name.
        overwrite: an altered file counts as missing.
    Raises:
        CorpusError: a file is truncated or altered.
    """
    digests = {name: folder.sha256(name) for name in files}
    for name, digest in digests.items():
        if not overwrite and digest not in (None, files[name]):
            raise CorpusError(
                f"{folder.path / name}: is truncated or altered (its checksum differs); "
                "delete it and rerun to rewrite it"
            )
    return digests == dict(files)


def add_environment(manifest: Mapping[str, Any], environment: Mapping[str, Any]) -> tuple[int, list[str]]:
    """Add an environment (versions, implementation) to the manifest's `environments`, unless it is there already.

    Returns:
        (its index in `environments`, names of the fields that differ from the previous environment)
    """
    known, new = manifest["environments"], json.loads(json.dumps(environment))
    last = known[-1] if known else new
    changed = [name for name in new if new[name] != last.get(name)]
    if new not in known:
        known.append(new)
    return known.index(new), changed
