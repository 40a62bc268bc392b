"""Corpora on disk (prepared, generated, or files of texts), tokenizers, and the cache of tokenised corpora."""

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cdgen.corpus.records import format_of, records
from cdgen.environment import cache_folder
from cdgen.errors import CorpusError, InputError
from cdgen.models import tokenizers
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import file_sha256
from cdgen.storage.progress import BYTES, Progress, Silent
from cdgen.training.tokens import TokenFile, tokenize

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
    path = Path(name).expanduser()
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
        return Corpus(str(name), (path,), _digest(["datasets", *digests]))
    return _fingerprinted(name, [path])


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
        if not (path / file).exists() or file_sha256(path / file) != sha256:
            raise CorpusError(f"{path / file}: is missing, truncated or altered; rerun the command that wrote it")
    return _corpus(name, [path / file for file in shas], list(shas.values()))


def _generated(name: str | Path, manifest: manifests.Manifest) -> dict[str, str]:
    """Return name and sha256 of the files of a generated corpus: its split documents, or else its whole texts."""
    if not manifest["complete"]:
        raise InputError(f"{name}: is not finished; resume its generation first")
    if manifest["settings"]["ignore_eos"] and not manifest["settings"]["split_documents"]:
        log.warning("%s: its texts continue after end-of-text tokens; generate it with split_documents=True", name)
    files = [shard.get("documents", shard) for shard in manifest["shards"]]
    return {file["name"]: file["sha256"] for file in files}


def _fingerprinted(name: str | Path, files: list[Path]) -> Corpus:
    return _corpus(name, files, [file_sha256(file) for file in files])


def _corpus(name: str | Path, files: list[Path], digests: list[str]) -> Corpus:
    """Return a corpus. The format of a file decides how its bytes are read, so it is part of the fingerprint."""
    formats = [format_of(file) or "" for file in files]
    return Corpus(str(name), tuple(files), _digest([*formats, *digests]))


def _digest(parts: list[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of transformers, the name of its folder, and the sha256 over its content."""

    module: PreTrainedTokenizerBase
    name: str
    fingerprint: str


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """Load a tokenizer from a folder.

    Raises:
        InputError: the folder has no tokenizer, or one that cannot be loaded or is not based on the tokenizers library.
    """
    module = tokenizers.load_tokenizer(folder)
    if not module.is_fast:
        raise InputError(f"{folder}: {type(module).__name__} is not based on the tokenizers library")
    content = module.backend_tokenizer.to_str()
    return Tokenizer(module, str(folder), _digest([content, str((module.bos_token_id, module.eos_token_id))]))


def token_file(corpus: Corpus, tokenizer: Tokenizer, progress: Progress | None = None) -> TokenFile:
    """Open a tokenised corpus in the cache; tokenise the corpus first if it is not there.

    Args:
        corpus: the corpus.
        tokenizer: the tokenizer.
        progress: receives the characters of text that are tokenised.
    Raises:
        InputError: the corpus cannot be read or tokenised.
        CorpusError: the cache is damaged or cannot be written.
    """
    shown = progress or Silent()

    def texts() -> Iterator[str]:
        shown.begin(None, unit=BYTES, verb="tokenised")
        for text in corpus.texts():
            shown.advance(len(text))
            yield text

    folder = cache_folder() / "tokens" / _digest([corpus.fingerprint, tokenizer.fingerprint])[:32]
    return tokenize(texts, tokenizer.module, folder, corpus.name)
