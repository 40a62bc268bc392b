"""Find corpora on disk: prepared, generated, or files of texts."""

import hashlib
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cdgen.corpus.records import format_of, records
from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import file_sha256
from cdgen.values import expanded

log = logging.getLogger("cdgen")


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found on disk.

    Attributes:
        name: the name it was found by, for messages.
        files: files, or one folder of `datasets`, that hold its texts.
        fingerprint: sha256 over the format and content of the files.
    """

    name: str
    files: tuple[Path, ...]
    fingerprint: str

    def texts(self) -> Iterator[str]:
        """Iterate over the documents."""
        for path in self.files:
            for _, text in records(path, remedy="prepare it first, with field=NAME"):
                yield text


def find(name: str | Path, split: str = "train") -> Corpus:
    """Find a corpus.

    Args:
        name: the folder of a prepared or generated corpus, a folder with `{split}.parquet`, or any other file or
            folder that :func:`cdgen.corpus.records.records` reads. If it has a manifest, only files that the manifest
            lists are read.
        split: "train" or "test".
    Raises:
        InputError: there is no such corpus, it is not finished, or its manifest is damaged.
        CorpusError: a file of a prepared or generated corpus was altered.
    """
    path = expanded(name)
    if not os.fspath(name) or not path.exists():
        raise InputError(f"{name or repr(name)}: no such file or folder")
    for kind in (manifests.GENERATED, manifests.PREPARED):
        if (path / manifests.FILE_NAMES[kind]).exists():
            return _listed(name, path, kind, split)
    if (path / f"{split}.parquet").exists():
        return _fingerprinted(name, [path / f"{split}.parquet"])
    if format_of(path) == "datasets":
        if not (path / "state.json").exists():
            raise InputError(
                f"{name}: holds neither {split}.parquet, nor a generated corpus, nor a dataset; prepare it first"
            )
        digests = [file_sha256(file) for file in sorted(path.iterdir()) if file.is_file()]
        return Corpus(str(name), (path,), digest(["datasets", *digests]))
    return _fingerprinted(name, [path])


def check_file(path: Path, sha256: str) -> None:
    """Raise CorpusError if a file is not the one that its corpus's manifest lists."""
    if not path.is_file() or file_sha256(path) != sha256:
        raise CorpusError(f"{path}: is missing, truncated or altered; rerun the command that wrote it")


def _listed(name: str | Path, path: Path, kind: str, split: str) -> Corpus:
    """Return a corpus that has a manifest."""
    remedy = "name another corpus, or one of its files"
    try:
        manifest = manifests.read(path, kind, remedy)
    except CorpusError as error:
        raise InputError(str(error)) from error
    assert manifest is not None, "find has seen the file"
    if kind == manifests.GENERATED:
        shas = _generated(name, manifest)
    elif f"{split}.parquet" not in manifest["files"]:
        raise InputError(f"{name}: has no {split} split; {remedy}")
    else:
        shas = {file: about["sha256"] for file, about in manifest["files"].items() if file == f"{split}.parquet"}
    for file, sha256 in shas.items():
        check_file(path / file, sha256)
    return _corpus(name, [path / file for file in shas], list(shas.values()))


def _generated(name: str | Path, manifest: manifests.Manifest) -> dict[str, str]:
    """Return name and sha256 of the files of a generated corpus: its split documents, or else its whole texts."""
    manifests.check_complete(name, manifest)
    if manifest["settings"]["ignore_eos"] and not manifest["settings"]["split_documents"]:
        log.warning("%s: its texts continue after end-of-text tokens; generate it with split_documents=True", name)
    files = [shard.get("documents", shard) for shard in manifest["shards"]]
    return {file["name"]: file["sha256"] for file in files}


def _fingerprinted(name: str | Path, files: list[Path]) -> Corpus:
    return _corpus(name, files, [file_sha256(file) for file in files])


def _corpus(name: str | Path, files: list[Path], digests: list[str]) -> Corpus:
    """Return a corpus. The format of a file decides how its bytes are read, so it is part of the fingerprint."""
    formats = [format_of(file) or "" for file in files]
    return Corpus(str(name), tuple(files), digest([*formats, *digests]))


def digest(parts: Iterable[str]) -> str:
    """Return the sha256 of several strings, hexadecimal."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
