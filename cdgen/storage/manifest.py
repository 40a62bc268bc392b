"""Manifests: JSON files that say what an output folder holds and what it was made from.

Every manifest has a `kind` and a `format_version`. Prepared corpora and tokenizers have a `manifest.json`; a generated
corpus has a `_manifest.json`, whose name makes readers of Parquet folders skip it; a training run has a `run.json` (see
:mod:`cdgen.storage.runs`), an evaluation a `results.json`, and a comparison a `comparison.json`.
"""

import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from cdgen.errors import CorpusError, InputError
from cdgen.storage import checked_json
from cdgen.storage import manifest_fields as fields
from cdgen.storage.folder import OutputFolder
from cdgen.values import expanded

GENERATED, PREPARED, TOKENIZER, RUN = "generated", "prepared", "tokenizer", "run"
RESULTS, COMPARISON, EXPERIMENT = "results", "comparison", "experiment"
NAME = "manifest.json"
FILE_NAMES = {
    GENERATED: "_manifest.json",
    PREPARED: NAME,
    TOKENIZER: NAME,
    RUN: "run.json",
    RESULTS: "results.json",
    COMPARISON: "comparison.json",
}
STAGES = "stages.json"  # lists the stages of an experiment; see :mod:`cdgen.storage.stages`
_VERSIONS = {GENERATED: 3, PREPARED: 2, TOKENIZER: 2, RUN: 2, RESULTS: 1, COMPARISON: 1}
_NOUNS = {
    GENERATED: "a generated corpus",
    PREPARED: "a prepared corpus",
    TOKENIZER: "a tokenizer",
    RUN: "a training run",
    RESULTS: "results of an evaluation",
    COMPARISON: "a comparison",
    EXPERIMENT: "an experiment",
}
_FIELDS = {
    GENERATED: fields.GENERATED,
    PREPARED: fields.PREPARED,
    TOKENIZER: fields.TOKENIZER,
    RUN: fields.RUN,
    RESULTS: fields.RESULTS,
    COMPARISON: fields.COMPARISON,
}

# What messages about a corpus with other settings recommend; commands without these two choices replace it.
REWRITE = "another folder, or resume=False to rewrite it"

Manifest = dict[str, Any]


def new(kind: str) -> Manifest:
    """Return the fields that manifests of all kinds share."""
    return {"kind": kind, "format_version": _VERSIONS[kind]}


def read(folder: Path, kind: str, remedy: str = "choose another folder") -> Manifest | None:
    """Read the manifest in a folder, and check the types of its fields.

    Args:
        folder: the folder.
        kind: the kind that is expected.
        remedy: what the user can do if the manifest is damaged or of another kind, for the message.
    Returns:
        The manifest, or None if the folder has none
    Raises:
        CorpusError: the manifest cannot be read, is damaged, is of another kind, or is of another format version.
    """
    path = folder / FILE_NAMES[kind]
    manifest = checked_json.read(path, remedy)
    if manifest is None and not path.exists():  # a file that holds `null` is damaged
        return None
    found = _kind(manifest)
    if found is None:
        raise CorpusError(f"{path}: is not a manifest of {_NOUNS[kind]}; {remedy}")
    if found != kind:
        raise _another(path, found, kind, remedy)
    version = manifest.get("format_version")
    if type(version) is not int or version != _VERSIONS[kind]:
        raise CorpusError(
            f"{path}: has format version {version!r}, but this version of cdgen reads {_VERSIONS[kind]}; {remedy}"
        )
    fault = checked_json.fault(manifest, _FIELDS[kind])
    if fault is None and kind == GENERATED:
        fault = _shard_fault(manifest)
    if fault:
        raise CorpusError(f"{path}: is damaged: {fault}; {remedy}")
    checked: Manifest = manifest
    return checked


def _shard_fault(manifest: Manifest) -> str | None:
    """Return the first entry of a shard that contradicts the rest of a generated corpus's manifest, or None."""
    split, environments = manifest["settings"]["split_documents"], range(len(manifest["environments"]))
    for at, shard in enumerate(manifest["shards"]):
        if ("documents" in shard) != split:
            return f"field 'shards[{at}].documents' contradicts 'settings.split_documents'"
        if shard["environment"] not in environments:
            return f"field 'shards[{at}].environment' is not the number of an environment"
    return None


def check_complete(name: str | Path, manifest: Manifest) -> None:
    """Raise InputError if a generated corpus of this name, which is going to be read, is not finished."""
    if not manifest["complete"]:
        raise InputError(f"{name}: is not finished; resume its generation first")


def read_any(folder: Path) -> Manifest | None:
    """Read the manifest in a folder, of whatever kind it is, or return None if there is none.

    Raises:
        CorpusError: the manifest cannot be read, is damaged, or is of another format version.
    """
    remedy = "restore it, or delete the folder"
    for kind, name in FILE_NAMES.items():
        if _kind(checked_json.read(folder / name, remedy)) == kind:
            return read(folder, kind, remedy)
    return None


def is_whole(folder: Path) -> bool:
    """Return whether a folder has the manifest of finished output, and the files that it lists; of a run, the last
    checkpoint.

    Raises:
        CorpusError: the manifest is damaged.
    """
    manifest = read_any(folder)
    if manifest is None:
        return False
    if manifest["kind"] == RUN:
        last = manifest["checkpoints"][-1:]
        names = [f"step_{one['step']:06d}/{file}" for one in last for file in ("", *one["files"])]
    elif manifest["kind"] == RESULTS:
        names = [each["name"] for each in manifest["results"]]
    elif manifest["kind"] == GENERATED:
        if not manifest["complete"]:
            return False
        names = [file["name"] for shard in manifest["shards"] for file in (shard, shard.get("documents", shard))]
    else:
        names = list(manifest["files"])
    return all((folder / each).exists() for each in names)


def content(manifest: Manifest) -> Any:
    """Return what a manifest states about the content of its files, as JSON.

    It is the same for equal files that were written in other folders or on other machines.
    """
    if manifest["kind"] == RUN:
        return [manifest["inputs"], manifest["checkpoints"]]
    if manifest["kind"] == RESULTS:
        return [[each["name"], each["sha256"]] for each in manifest["results"]]
    if manifest["kind"] == GENERATED:
        # A shard that was lost and written again may name another environment; only its file counts.
        shards = [{name: value for name, value in one.items() if name != "environment"} for one in manifest["shards"]]
        return [manifest["settings"], shards]
    return manifest["files"]


def is_shard_name(name: str) -> bool:
    """Return whether a file of a generated corpus, or of its documents, may have this name."""
    return bool(fields.SHARD_NAME.fullmatch(name) or fields.DOCUMENTS_NAME.fullmatch(name))


def _kind(manifest: Any) -> str | None:
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    return kind if isinstance(kind, str) else None


def check_no_other_kind(folder: Path, kind: str, remedy: str = "choose another folder") -> None:
    """Raise CorpusError if a folder to write to holds output of another kind, or of an earlier version of cdgen."""
    names = FILE_NAMES | {EXPERIMENT: STAGES}
    for name in sorted({*names.values()} - {names[kind]}):
        try:
            found = _kind(checked_json.read(folder / name, remedy))
        except CorpusError:
            continue  # a file of the same name that cdgen did not write
        if found in _NOUNS:
            raise _another(folder / name, found, kind, remedy)


def _another(path: Path, found: str, kind: str, remedy: str) -> CorpusError:
    """Return the error for a manifest that does not describe output of this kind."""
    if FILE_NAMES.get(found, path.name) != path.name:
        return CorpusError(f"{path}: describes {_NOUNS[found]} of an earlier version of cdgen; {remedy}")
    return CorpusError(f"{path}: describes {_NOUNS.get(found, found)}, not {_NOUNS[kind]}; {remedy}")


def encode(manifest: Manifest) -> bytes:
    """Return the content of a manifest's file."""
    # Paths that are not UTF-8 hold unpaired surrogates, for which "backslashreplace" gives JSON's own escapes.
    return (json.dumps(manifest, indent=1, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write(folder: OutputFolder, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    folder.write(FILE_NAMES[manifest["kind"]], encode(manifest))


def check_free(
    folder: Path, names: Iterable[str], listed: Collection[str] = (), remedy: str = "choose another folder"
) -> None:
    """Raise CorpusError if a file that cdgen did not write has a name that cdgen is going to use.

    Args:
        folder: the output folder.
        names: names of files or folders to write.
        listed: names that the folder's manifest lists.
        remedy: what the user can do, for the message.
    """
    for name in names:
        if name not in listed and os.path.lexists(folder / name):
            raise CorpusError(f"{folder / name}: is in the way, and no manifest lists it; move it, or {remedy}")


def listed(manifest: Manifest | None, files: Iterable[str]) -> list[str]:
    """Return the names that belong to cdgen: the files of a manifest, and those that it replaces."""
    return [] if manifest is None else sorted({*files, *manifest.get("replaces", ())})


def finish_replacing(folder: OutputFolder, manifest: Manifest, files: Mapping[str, str]) -> None:
    """Delete the files that a manifest replaces, except for those that are its own now.

    A manifest that replaces another one is written while the old files still exist, and lists them in `replaces`. If
    the process is killed before it has called this function, a rerun calls it. Only listed files are deleted, and the
    manifest describes the folder at any time.

    Args:
        folder: the folder.
        manifest: its manifest; `replaces` is removed from it.
        files: sha256 of the manifest's own files by name.
    """
    if "replaces" in manifest:
        for name in manifest.pop("replaces"):
            if name not in files or folder.sha256(name) != files[name]:
                folder.remove(name)
        write(folder, manifest)


def check_not_replaced(folder: Path, inputs: Iterable[str | os.PathLike[str]], replaced: Iterable[str]) -> None:
    """Raise InputError if the output would replace a file that is read.

    Args:
        folder: the output folder.
        inputs: files and folders that are read.
        replaced: names in the folder that will be replaced or deleted.
    """
    outputs = {os.path.realpath(folder / name) for name in replaced}
    for path in inputs:
        if os.path.realpath(expanded(path)) in outputs:
            raise InputError(f"{path}: is read, but would also be replaced by the output; write to another folder")


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
