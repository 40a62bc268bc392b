"""Corpora on disk (prepared, generated, or files of texts), tokenizers, and the cache of tokenised corpora."""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cdgen.corpus.records import format_of, records
from cdgen.environment import cache_folder
from cdgen.errors import CorpusError, InputError, first_line
from cdgen.models.quiet import quiet_transformers
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import file_sha256
from cdgen.training.tokens import TokenFile, tokenize

log = logging.getLogger("cdgen")


@dataclass(frozen=True)
class Corpus:
    """A corpus that was found on disk.

    Attributes:
        name: the name it was found by, for messages.
        files: files, or one folder of `datasets`, that hold its texts.
        fingerprint: sha256 over the content of the files.
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
        name: a folder with `{split}.parquet`, the folder of a generated corpus, or any other file or folder that
            :func:`cdgen.corpus.records.records` reads.
        split: "train" or "test".
    Raises:
        InputError: there is no such corpus, it is not finished, or its manifest is damaged.
        CorpusError: a shard of a generated corpus was altered.
    """
    path = Path(name).expanduser()
    if not path.exists():
        raise InputError(f"{name}: no such file or folder")
    if (path / f"{split}.parquet").exists():
        return _fingerprinted(name, [path / f"{split}.parquet"])
    if (path / manifests.NAME).exists():
        return _generated(name, path)
    if format_of(path) == "datasets":
        if not (path / "state.json").exists():
            raise InputError(
                f"{name}: holds neither {split}.parquet, nor a generated corpus, nor a dataset; prepare it first"
            )
        digests = [file_sha256(file) for file in sorted(path.iterdir()) if file.is_file()]
        return Corpus(str(name), (path,), _digest(digests))
    return _fingerprinted(name, [path])


def _generated(name: str | Path, path: Path) -> Corpus:
    """Return a generated corpus: the documents into which its texts were split, or else the texts themselves."""
    remedy = "name another corpus, or one of its files"
    try:
        manifest = manifests.read(path / manifests.NAME, manifests.GENERATED, remedy)
    except CorpusError as error:
        raise InputError(str(error)) from error
    assert manifest is not None, "find has seen the file"
    if not manifest["complete"]:
        raise InputError(f"{name}: is not finished; resume its generation first")
    try:
        unsplit = manifest["settings"]["ignore_eos"] and not manifest["settings"]["split_documents"]
        shards = [shard.get("documents", shard) for shard in manifest["shards"]]
        files, digests = [path / shard["name"] for shard in shards], [shard["sha256"] for shard in shards]
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(f"{path / manifests.NAME}: is damaged; {remedy}") from error
    if unsplit:
        log.warning("%s: its texts continue after end-of-text tokens; generate it with split_documents=True", name)
    corpus = _fingerprinted(name, files)
    if corpus.fingerprint != _digest(digests):
        raise CorpusError(f"{name}: a shard is truncated or altered; rerun its generation, which names the shard")
    return corpus


def _fingerprinted(name: str | Path, files: list[Path]) -> Corpus:
    return Corpus(str(name), tuple(files), _digest([file_sha256(file) for file in files]))


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
        InputError: the folder has no tokenizer, or one that is not based on the tokenizers library.
    """
    if not Path(folder).expanduser().is_dir():
        raise InputError(f"{folder}: no such folder; give one with a tokenizer")
    with quiet_transformers():
        try:
            module = AutoTokenizer.from_pretrained(Path(folder).expanduser())
            content = module.backend_tokenizer.to_str()
        except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
            raise InputError(f"{folder}: cannot load the tokenizer: {first_line(error)}") from error
    return Tokenizer(module, str(folder), _digest([content, str((module.bos_token_id, module.eos_token_id))]))


def token_file(corpus: Corpus, tokenizer: Tokenizer) -> TokenFile:
    """Open a tokenised corpus in the cache; tokenise the corpus first if it is not there."""
    folder = cache_folder() / "tokens" / _digest([corpus.fingerprint, tokenizer.fingerprint])[:32]
    return tokenize(corpus.texts, tokenizer.module, folder, corpus.name)
