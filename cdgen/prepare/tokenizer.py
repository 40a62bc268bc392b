"""Train a tokenizer: byte-level BPE, which encodes any text and decodes it exactly."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from cdgen import values
from cdgen.corpus.text_files import check_path
from cdgen.errors import InputError
from cdgen.prepare.prepared import TrainedTokenizer
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder, file_sha256
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import BYTES, Progress, displayed
from cdgen.values import integer, switch

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger("cdgen")

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
FILES = ("tokenizer.json", "tokenizer_config.json")
LEAST = 256 + len(SPECIAL_TOKENS)  # smallest vocabulary: every byte is a token
GREATEST = 1 << 22  # largest vocabulary; the tokenizers library reserves memory for all of it at the start

_LONGEST_RUN = 5000  # characters of the longest word, or of the longest run of spaces, that is not cut for training


def train_tokenizer(
    corpus: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    vocab_size: int = 32000,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> TrainedTokenizer:
    """Train byte-level BPE on a corpus and write it to a folder that transformers' AutoTokenizer loads.

    `<s>` (token 0) is put in front of every text. `</s>` (token 1) ends a document; it is not added here, but when
    documents are joined. `<pad>` is token 2.

    Args:
        corpus: a folder with train.parquet, or a file that :func:`cdgen.corpus.records.records` reads.
        out: the output folder.
        vocab_size: number of tokens, with the special ones; a small corpus gives fewer.
        overwrite: replace a tokenizer in the folder that has another corpus or size.
        progress: True shows a progress bar, as in :meth:`cdgen.ContrastiveLM.generate`; or a display of your own.
    Returns:
        The tokenizer's folder and size.
    Raises:
        InputError: the corpus cannot be read or is empty, the size is too small, or `out` holds another tokenizer.
        CorpusError: the folder cannot be written, or it holds altered files or files that cdgen did not write.
    """
    import tokenizers

    from cdgen.corpus.records import format_of

    vocab_size, overwrite = checked_size(vocab_size), switch("overwrite", overwrite)
    path, digest = _train_split(values.path("corpus", corpus, "folder or file"))
    compared = [format_of(path), digest, vocab_size, tokenizers.__version__]
    fingerprint = f"sha256:{hashlib.sha256(json.dumps(compared).encode()).hexdigest()}"
    with OutputFolder(out) as folder:
        old = _existing(folder, fingerprint, overwrite)
        if old is not None and not overwrite:
            manifests.finish_replacing(folder, old, old["files"])
            if manifests.is_intact(folder, old["files"]):
                return TrainedTokenizer(folder.path, int(old["entries"]), written=False)
        replaced = manifests.listed(old, old["files"] if old else ())
        manifests.check_not_replaced(folder.path, [path], replaced)
        with displayed(progress) as display:
            trained = _train(path, vocab_size, display)
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
        if replaced:
            manifest["replaces"] = replaced
        _write(folder, manifest, _files(trained))
        manifests.finish_replacing(folder, manifest, manifest["files"])
    return TrainedTokenizer(folder.path, entries, written=True)


def checked_size(vocab_size: int) -> int:
    """Return the size of a vocabulary as an int.

    Raises:
        InputError: it is not a whole number, or too small or too large.
    """
    return integer("vocab_size", vocab_size, LEAST, GREATEST)


def _train_split(corpus: Path) -> tuple[Path, str]:
    """Return the file to train on, and its sha256."""
    check_path(corpus)
    path = corpus / "train.parquet" if (corpus / "train.parquet").exists() else corpus
    if path.is_dir():
        raise InputError(f"{path}: holds no train.parquet; prepare a corpus first")
    try:
        return path, file_sha256(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _existing(folder: OutputFolder, fingerprint: str, overwrite: bool) -> Manifest | None:
    """Return the folder's own manifest, or None; raise if it holds another tokenizer or foreign files."""
    old = manifests.read(folder.path, manifests.TOKENIZER)
    manifests.check_no_other_kind(folder.path, manifests.TOKENIZER)
    manifests.check_free(folder.path, FILES, manifests.listed(old, old["files"] if old else ()))
    if old is not None and old["fingerprint"] != fingerprint and not overwrite:
        raise InputError(
            f"{folder.path}: holds a tokenizer of another corpus, vocabulary size or tokenizers version; "
            "choose another folder, or use overwrite=True"
        )
    return old


def _write(folder: OutputFolder, manifest: Manifest, files: dict[str, bytes]) -> None:
    """Write the manifest and the tokenizer's files."""
    manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    # The manifest is renamed first: if the process is killed before the other files are renamed, a rerun resumes.
    folder.write_all({manifests.NAME: manifests.encode(manifest), **files})


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
    found = (text for _, text in records(path, remedy="prepare it first, with field=NAME") if text.strip())
    first = next(found, None)
    if first is None:
        raise InputError(f"{path}: holds no text")

    def texts() -> Iterator[str]:
        progress.begin(None, unit=BYTES, verb="read")
        for text in chain([first], found):
            yield from _without_long_runs(text)
            progress.advance(len(text))

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def _without_long_runs(text: str) -> Iterator[str]:
    """Yield a text, cut where a word is very long: training takes time in proportion to the square of that length."""
    start = 0
    for run in re.finditer(r"\S+|\s+", text) if _may_have_long_run(text) else ():
        for end in range(run.start() + _LONGEST_RUN, run.end(), _LONGEST_RUN):
            yield text[start:end]
            start = end
    yield text[start:]


def _may_have_long_run(text: str) -> bool:
    """Return False for ordinary texts, in a small part of the time that a search takes.

    A run that is too long fills one of these windows of half that length.
    """
    size = max(_LONGEST_RUN // 2, 1)
    windows = (text[start : start + size] for start in range(0, len(text) - size + 1, size))
    return any(window.isspace() or window.split(None, 1) == [window] for window in windows)


def _files(trained: "Tokenizer") -> dict[str, bytes]:
    """Return the files that transformers loads, by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True)),
    }
    content = (trained.to_str(pretty=True), json.dumps(config, indent=2) + "\n")
    return {name: text.encode() for name, text in zip(FILES, content, strict=True)}
