"""The manifest of a generated corpus: its settings, models and seeds, and which shards are finished."""

import json
from typing import Any, TypedDict

from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest

_REMEDY = "choose another folder, or use resume=False to rewrite this one"


class FileEntry(TypedDict):
    """A file of documents cut out of a shard."""

    name: str
    rows: int
    sha256: str


class ShardEntry(TypedDict, total=False):
    """A finished shard. It has `documents` if texts were split; `environment` is an index
    into the manifest's `environments`."""

    number: int
    name: str
    rows: int
    tokens: int  # in prompts and continuations
    new_tokens: int
    documents: FileEntry
    sha256: str
    environment: int


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


def begin(folder: OutputFolder, manifest: Manifest, resume: bool) -> Manifest:
    """Return the folder's manifest to resume from; if there is none, write and return `manifest`.

    Args:
        folder: the output folder, as an entered context.
        manifest: the manifest of a new corpus with the current settings, models and seeds.
        resume: keep finished shards; if False, remove them and start a new corpus.
    Raises:
        InputError: the corpus in the folder was started with other settings, models or seeds.
        CorpusError: the folder's content cannot be used.
    """
    if resume:
        old = manifests.read(folder.path / manifests.NAME, manifests.GENERATED, _REMEDY)
        if old is not None:
            # through JSON, so that both sides have JSON's types
            now = _compared(json.loads(json.dumps(manifest)))
            manifests.check_same(folder.path, _compared(old), now, "another folder, or resume=False to rewrite it")
            return old
        manifests.check_not_orphaned(folder.path, "shard-*", remedy=_REMEDY)
    else:
        folder.remove(manifests.NAME, "shard-[0-9]*", "documents-[0-9]*")
    write(folder, manifest)  # before the first shard, so that the settings are recorded from the start
    return manifest


def _compared(manifest: Manifest) -> dict[str, Any]:
    models = {role: model and model["fingerprint"] for role, model in manifest["models"].items()}
    return {**manifest["settings"], **models, "seeds": manifest["seeds"]["fingerprint"]}


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


def write(folder: OutputFolder, manifest: Manifest) -> None:
    """Update the counts, and write the manifest."""
    shards = manifest["shards"]
    manifest["counts"] = {
        "shards": len(shards),
        "documents": sum(shard["rows"] for shard in shards),
        "tokens": sum(shard["tokens"] for shard in shards),
        "new_tokens": sum(shard["new_tokens"] for shard in shards),
    }
    manifests.write(folder, manifest)
