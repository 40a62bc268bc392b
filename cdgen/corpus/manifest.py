"""The manifest of a generated corpus: its settings, models and seeds, and which shards are finished.

The folder's layout suits `datasets.load_dataset`, which skips names that begin with "_" or ".". pandas and pyarrow read
the folder `data`, since they would take the card, README.md, for a shard:

    _manifest.json
    data/train-00000.parquet     a shard
    _documents/00000.parquet     its texts, split into documents; only if requested
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypedDict

from cdgen.corpus.journal import discard
from cdgen.corpus.shards import FORMATS
from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest

NAME = manifests.FILE_NAMES[manifests.GENERATED]
_INSTEAD = "choose another folder"
_DATA, _DOCUMENTS = "data", "_documents"


class FileEntry(TypedDict):
    """A file of documents cut out of a shard."""

    name: str
    rows: int
    arrow_bytes: int  # memory of its rows as an Arrow table, which dataset cards state
    sha256: str


class ShardEntry(TypedDict, total=False):
    """A finished shard. It has `documents` if texts were split; `environment` is an index
    into the manifest's `environments`."""

    number: int
    name: str
    rows: int
    tokens: int  # in prompts and continuations
    new_tokens: int
    errors: int  # rows whose finish_reason is "error"
    documents: FileEntry
    arrow_bytes: int
    sha256: str
    environment: int


def shard_name(number: int, format: str) -> str:
    """Return the name of a shard's file."""
    return f"{_DATA}/train-{number:05d}{FORMATS[format]}"


def documents_name(number: int, format: str) -> str:
    """Return the name of the file with a shard's documents."""
    return f"{_DOCUMENTS}/{number:05d}{FORMATS[format]}"


def new(settings: dict[str, Any], models: dict[str, Any], seeds: dict[str, Any]) -> Manifest:
    """Return a manifest without shards. The arguments are JSON objects."""
    return manifests.new(manifests.GENERATED) | {
        "complete": False,
        "settings": settings,
        "models": models,
        "seeds": seeds,
        "environments": [],  # versions, implementation and threads that shards were computed with
        "counts": {},
        "shards": [],
    }


def begin(folder: OutputFolder, manifest: Manifest, resume: bool, inputs: Iterable[str] = ()) -> Manifest:
    """Return the folder's manifest to resume from, or `manifest` if a new corpus is started.

    This writes nothing for a new corpus: an old one stays as it is until the first new shard is written.

    Args:
        folder: the output folder, as an entered context.
        manifest: the manifest of a new corpus with the current settings, models and seeds.
        resume: keep finished shards; if False, start a new corpus that replaces them.
        inputs: the files that the seeds were read from.
    Raises:
        InputError: the corpus in the folder has shards of other settings, models or seeds; or the new corpus would
            replace its own seeds.
        CorpusError: the folder's content cannot be used.
    """
    old = check_folder(folder)
    if old is None:
        return manifest
    own = files_of(old)
    if resume and any((folder.path / name).exists() for name in own):
        _check_same(folder.path, old, manifest)
        manifests.finish_replacing(folder, old, own)
        return old
    replaced = manifests.listed(old, own)
    manifests.check_not_replaced(folder.path, inputs, replaced)
    return manifest | ({"replaces": replaced} if replaced else {})


def check_part(corpus: Path, manifest: Manifest) -> set[int]:
    """Return the numbers of a corpus's shards that are present, before a part of it is written elsewhere.

    Their checksums are not compared.

    Args:
        corpus: the folder of the whole corpus.
        manifest: the manifest of a new corpus with the settings, models and seeds of the part.
    Raises:
        InputError: the corpus has shards of other settings, models or seeds.
        CorpusError: its manifest is damaged.
    """
    old = manifests.read(corpus, manifests.GENERATED, f"restore it, or {_INSTEAD}")
    shards = old["shards"] if old else []
    present = {shard["number"] for shard in shards if all((corpus / name).exists() for name in names_of(shard))}
    if old is not None and present:
        _check_same(corpus, old, manifest)
    return present


def _check_same(path: Path, old: Manifest, new: Manifest) -> None:
    """Raise InputError if two manifests differ in what must be the same for a corpus to be resumed."""
    before, now = compared(old), compared(json.loads(json.dumps(new)))  # both sides have JSON's types
    seeds = before.pop("seeds"), now.pop("seeds")
    if before.keys() != now.keys() or before["noise_key"] != now["noise_key"]:
        raise InputError(
            f"{path}: was started by another version of cdgen, which draws other texts or has other settings; "
            f"use that version, {manifests.REWRITE}"
        )
    manifests.check_same(path, before, now, manifests.REWRITE)
    if seeds[0] != seeds[1]:
        raise InputError(
            f"{path}: was started with other seeds: {_difference(old['seeds'], new['seeds'])}; "
            f"use the same seeds, {manifests.REWRITE}"
        )


def check_folder(folder: OutputFolder, instead: str = _INSTEAD) -> Manifest | None:
    """Return the manifest in a folder, or None; check that the folder can hold a generated corpus.

    Args:
        folder: the folder, entered.
        instead: what the user can do if damage cannot be repaired, for the message.
    Raises:
        CorpusError: the folder holds something else, a damaged manifest, or shards that no manifest lists.
    """
    old = manifests.read(folder.path, manifests.GENERATED, f"restore it, or {instead}")
    manifests.check_no_other_kind(folder.path, manifests.GENERATED)
    if old is not None:
        names = [shard_name(shard["number"], old["settings"]["format"]) for shard in old["shards"]]
        for at, (name, shard) in enumerate(zip(names, old["shards"], strict=True)):
            if shard["name"] != name:
                problem = f"is damaged: field 'shards[{at}].name' is not {name}"
                raise CorpusError(f"{folder.path / NAME}: {problem}; restore it, or {instead}")
    parts = (_DATA, _DOCUMENTS)
    manifests.check_free(folder.path, [part for part in parts if not (folder.path / part).is_dir()])
    present = [f"{part}/{path.name}" for part in parts for path in sorted((folder.path / part).glob("*"))]
    listed = manifests.listed(old, files_of(old) if old else ())
    files = {name for name in listed if not (folder.path / name).is_dir()}
    manifests.check_free(folder.path, filter(manifests.is_shard_name, present), files, instead)
    if old is None or not old["complete"]:
        folder.check_writable()
    return old


def compared(manifest: Manifest) -> dict[str, Any]:
    """Return what must be the same for a corpus to be resumed."""
    models = {role: model and model["fingerprint"] for role, model in manifest["models"].items()}
    # The fingerprint does not tell whether the names of the seeds key their noise.
    seeds = [manifest["seeds"].get(name) for name in ("fingerprint", "named")]
    return {**manifest["settings"], **models, "seeds": seeds}


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first difference between the seeds of two corpora, for a message."""
    for name in ("paths", "field", "chunk_words", "prefix_tokens", "parse_special", "count", "named"):
        if before.get(name) != now.get(name):
            return f"{name} = {before.get(name)}, but now {name} = {now.get(name)}"
    return "the content of their files has changed"


def names_of(shard: ShardEntry) -> list[str]:
    """Return the names of a shard's files."""
    return [file["name"] for file in (shard, shard.get("documents")) if file]


def shard_count(documents: int, shard_size: int) -> int:
    """Return the number of shards of a complete corpus."""
    return -(-documents // shard_size)


def fingerprint(manifest: Manifest) -> str:
    """Return a sha256, hexadecimal, over all that decides the texts of a corpus."""
    return hashlib.sha256(json.dumps(compared(manifest), sort_keys=True).encode()).hexdigest()


def files_of(manifest: Manifest) -> dict[str, str]:
    """Return the sha256 of a corpus's files by name."""
    entries = [entry for shard in manifest["shards"] for entry in (shard, shard.get("documents")) if entry]
    return {entry["name"]: entry["sha256"] for entry in entries}


def finished(folder: OutputFolder, manifest: Manifest) -> dict[int, ShardEntry]:
    """Return the entries of finished shards by number. Shards whose files are gone are left out.

    Raises:
        CorpusError: a file is truncated or altered.
    """
    found = {}
    for shard in manifest["shards"]:
        files = [shard, *([shard["documents"]] if "documents" in shard else [])]
        if manifests.is_intact(folder, {file["name"]: file["sha256"] for file in files}):
            found[shard["number"]] = shard
    return found


def list_shards(manifest: Manifest, done: dict[int, ShardEntry]) -> None:
    """List finished shards and their counts in a manifest."""
    manifest["shards"] = shards = [done[number] for number in sorted(done)]
    manifest["counts"] = {
        "shards": len(shards),
        "documents": sum(shard["rows"] for shard in shards),
        **{name: sum(shard[name] for shard in shards) for name in ("tokens", "new_tokens", "errors")},
    }


def write_shard(
    folder: OutputFolder, manifest: Manifest, done: dict[int, ShardEntry], files: dict[str, bytes], complete: bool
) -> None:
    """Write a shard, and the manifest that lists it.

    All files are written under temporary names first. The manifest is renamed before the shard, so the manifest lists
    every shard on the disk. If the process is killed in between, the shard is missing, and a rerun writes it again.

    Args:
        folder: the output folder.
        manifest: the corpus's manifest, which is updated.
        done: all finished shards by number, including this one.
        files: content of the shard's files by name.
        complete: no shard is missing now.
    Raises:
        CorpusError: the folder cannot be written.
    """
    list_shards(manifest, done)
    manifest["complete"] = complete and "replaces" not in manifest
    folder.write_all({NAME: manifests.encode(manifest), **files})
    manifest["complete"] = complete
    manifests.finish_replacing(folder, manifest, files_of(manifest))


def complete(folder: OutputFolder, manifest: Manifest) -> None:
    """Finish a corpus that a process left after its last shard: mark it as complete, and delete its journal."""
    if not manifest["complete"]:
        manifest["complete"] = True
        manifests.write(folder, manifest)
    discard(folder, fingerprint(manifest))
