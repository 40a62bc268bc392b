"""Train a tokenizer: byte-level BPE, which encodes any text and decodes it exactly."""

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from cdgen.errors import InputError
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder, file_sha256
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import BYTES, Progress, Silent

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("cdgen")

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
LEAST = 256 + len(SPECIAL_TOKENS)  # smallest vocabulary: every byte is a token


def train_tokenizer(
    corpus: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    vocab_size: int = 32000,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[int, bool]:
    """Train byte-level BPE on a corpus and write it to a folder that transformers' AutoTokenizer loads.

    `<s>` (token 0) is put in front of every text. `</s>` (token 1) ends a document; it is not added here, but when
    documents are joined. `<pad>` is token 2.

    Args:
        corpus: a folder with train.parquet, or a file that :func:`cdgen.corpus.records.records` reads.
        out: the output folder.
        vocab_size: number of entries including the special tokens; a small corpus gives fewer.
        overwrite: replace a tokenizer in the folder that has another corpus or size.
        progress: receives the characters of text that are read.
    Returns:
        (number of entries, False if the folder already held this tokenizer)
    Raises:
        InputError: the corpus cannot be read or is empty, the vocabulary is too small, or `out` holds another
            tokenizer.
        CorpusError: the folder cannot be written, or it holds altered files or files that cdgen did not write.
    """
    import tokenizers

    if vocab_size < LEAST:
        raise InputError(
            f"vocab_size = {vocab_size}: must be {LEAST} or more: 256 bytes and {len(SPECIAL_TOKENS)} special tokens"
        )
    path = _train_split(Path(corpus))
    digest = file_sha256(path)
    compared = [digest, vocab_size, tokenizers.__version__]
    fingerprint = f"sha256:{hashlib.sha256(json.dumps(compared).encode()).hexdigest()}"
    with OutputFolder(out) as folder:
        old = _finished(folder, fingerprint, overwrite)
        if old is not None:
            return old["entries"], False
        trained = _train(path, vocab_size, progress or Silent())
        entries = trained.get_vocab_size()
        if entries < vocab_size:
            log.warning("%s: gives %d entries, not %d: it has no more pairs to merge", path, entries, vocab_size)
        manifest = manifests.new(manifests.TOKENIZER) | {
            "fingerprint": fingerprint,
            "corpus_sha256": digest,
            "vocab_size": vocab_size,
            "entries": entries,
            "versions": {"tokenizers": tokenizers.__version__},
        }
        _write(folder, manifest, _files(trained))
    return entries, True


def _train_split(corpus: Path) -> Path:
    """Return the file to train on."""
    path = corpus / "train.parquet" if (corpus / "train.parquet").exists() else corpus
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        raise InputError(f"{path}: holds no train.parquet; prepare a corpus first")
    return path


def _finished(folder: OutputFolder, fingerprint: str, overwrite: bool) -> Manifest | None:
    """Return the folder's manifest if it already holds the tokenizer; raise if it holds another one."""
    old = manifests.read(folder.path / manifests.NAME, manifests.TOKENIZER)
    if old is None:
        manifests.check_not_orphaned(folder.path, "tokenizer.json")
        return None
    if overwrite:
        return None
    if old["fingerprint"] != fingerprint:
        raise InputError(
            f"{folder.path}: holds a tokenizer of another corpus, vocabulary size or tokenizers version; "
            "choose another folder, or use overwrite=True"
        )
    return old if manifests.is_intact(folder, old["files"]) else None


def _write(folder: OutputFolder, manifest: Manifest, files: dict[str, bytes]) -> None:
    """Write the manifest and the tokenizer's files."""
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    # The manifest is renamed first: if the process is killed before the other files are renamed, a rerun resumes.
    with folder.stream(manifests.NAME, *files) as opened:
        for file, data in zip(opened, [manifests.encode(manifest), *files.values()], strict=True):
            file.write(data)
        folder.remove(*files)  # the files of a tokenizer that is overwritten


def _train(path: Path, vocab_size: int, progress: Progress) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    from cdgen.corpus.records import records

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    found = records(path, remedy="prepare it first, with field=NAME")
    first = next(found, None)
    if first is None:
        raise InputError(f"{path}: holds no documents")

    def texts() -> Iterator[str]:
        progress.begin(None, unit=BYTES, verb="read")
        for _, text in chain([first], found):
            yield text
            progress.advance(len(text))

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def _files(trained: "Tokenizer") -> dict[str, bytes]:
    """Return the files that transformers loads, by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True)),
    }
    return {
        "tokenizer.json": trained.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
