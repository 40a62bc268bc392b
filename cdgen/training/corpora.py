"""What a corpus is on disk: prepared, generated, or a file of texts; and its tokens in the cache."""

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cdgen.corpus.records import format_of, records
from cdgen.environment import cache_folder
from cdgen.errors import CorpusError, InputError
from cdgen.models.quiet import quiet_transformers
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import file_sha256
from cdgen.training.tokens import tokenize

log = logging.getLogger("cdgen")


@dataclass(frozen=True)
class Corpus:
    """Texts by name; `fingerprint` is the sha256 over their files."""

    name: str
    files: tuple[Path, ...]
    fingerprint: str

    def texts(self):
        """Iterate over the documents."""
        for path in self.files:
            for _, text in records(path, flag="cdgen prepare"):
                yield text


def find(name, split="train"):
    """The :class:`Corpus` that `name` stands for.

    Args:
        name: a folder with `{split}.parquet`, one that `cdgen generate` wrote, or what cdgen.corpus.records reads.
    Raises:
        InputError: nothing there, or a corpus that is not finished. CorpusError: a shard that is not what was written.
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
            raise InputError(f"{name}: holds neither {split}.parquet, nor a generated corpus, nor a dataset")
        digests = [file_sha256(file) for file in sorted(path.iterdir()) if file.is_file()]
        return Corpus(str(name), (path,), _digest(digests))
    return _fingerprinted(name, [path])


def _generated(name, path):
    """Of a generated corpus, the documents cut out of the texts where it has them, else the texts."""
    manifest = json.loads((path / manifests.NAME).read_text())
    if "shards" not in manifest:
        raise InputError(f"{name}: {manifests.NAME} is not that of a generated corpus; name one of its files")
    if not manifest["complete"]:
        raise InputError(f"{name}: is not finished; let cdgen generate go on to its end first")
    settings = manifest["settings"]
    if settings["ignore_eos"] and not settings["split_documents"]:
        log.warning("%s: texts run on past their end, since it was written without --split-documents", name)
    shards = [shard.get("documents", shard) for shard in manifest["shards"]]
    corpus = _fingerprinted(name, [path / shard["name"] for shard in shards])
    if corpus.fingerprint != _digest([shard["sha256"] for shard in shards]):
        raise CorpusError(f"{name}: a shard is truncated or altered; run cdgen generate again, which names it")
    return corpus


def _fingerprinted(name, files):
    return Corpus(str(name), tuple(files), _digest([file_sha256(file) for file in files]))


def _digest(parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Tokenizer:
    """A tokenizer of transformers and the sha256 over its content."""

    module: PreTrainedTokenizerBase
    name: str
    fingerprint: str


def load_tokenizer(folder):
    """The :class:`Tokenizer` in a folder.

    Raises:
        InputError: none there, or none of the tokenizers library.
    """
    if not Path(folder).expanduser().is_dir():
        raise InputError(f"{folder}: no such folder; give one with a tokenizer")
    with quiet_transformers():
        try:
            module = AutoTokenizer.from_pretrained(Path(folder).expanduser())
            content = module.backend_tokenizer.to_str()
        except (OSError, ValueError, ImportError, AttributeError, KeyError) as error:
            raise InputError(f"{folder}: cannot load the tokenizer: {str(error).strip().splitlines()[0]}") from error
    return Tokenizer(module, str(folder), _digest([content, str((module.bos_token_id, module.eos_token_id))]))


def token_file(corpus, tokenizer):
    """The :class:`~cdgen.training.tokens.TokenFile` of a corpus, out of the cache where it was tokenised before."""
    folder = cache_folder() / "tokens" / _digest([corpus.fingerprint, tokenizer.fingerprint])[:32]
    return tokenize(corpus.texts, tokenizer.module, folder, corpus.name)
