"""Train a tokenizer: byte-level BPE, so that every text can be written and comes back exactly."""

import hashlib
import json
import logging
from itertools import chain
from pathlib import Path

from cdgen.errors import CorpusError, InputError

log = logging.getLogger("cdgen")

SPECIAL_TOKENS = ("<s>", "</s>", "<pad>")
LEAST = 256 + len(SPECIAL_TOKENS)  # every byte is a token
MANIFEST = "manifest.json"


def train_tokenizer(corpus, out, *, vocab_size=32000, overwrite=False, progress=None):
    """Train byte-level BPE on a corpus and write it to a folder that transformers' AutoTokenizer loads.

    `<s>` (0) is put in front of every text; `</s>` (1), the end of a document, is for whoever joins documents to put;
    `<pad>` is 2.

    Args:
        corpus: a folder with train.parquet, or a file that :func:`cdgen.corpus.records.records` reads.
        out: the folder.
        vocab_size: entries, with the special tokens; a corpus of few words gives fewer.
        overwrite: write anew what the folder holds of another corpus or size.
        progress: see :mod:`cdgen.storage.byte_progress`.
    Returns:
        (entries, False where the folder held this very tokenizer already)
    Raises:
        InputError: no texts, a corpus that cannot be read, too small a vocabulary, another tokenizer in `out`.
        CorpusError: the folder cannot be written, or holds altered files or others' ones.
    """
    import tokenizers

    from cdgen.storage.byte_progress import Progress
    from cdgen.storage.folder import OutputFolder, file_sha256

    if vocab_size < LEAST:
        raise InputError(
            f"vocab_size = {vocab_size}: must be {LEAST} or more, 256 bytes and {len(SPECIAL_TOKENS)} marks"
        )
    path = Path(corpus)
    if (path / "train.parquet").exists():
        path /= "train.parquet"
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        raise InputError(f"{path}: holds no train.parquet; make it with cdgen prepare")
    digest = file_sha256(path)
    compared = [digest, vocab_size, tokenizers.__version__]
    fingerprint = f"sha256:{hashlib.sha256(json.dumps(compared).encode()).hexdigest()}"
    with OutputFolder(out) as folder:
        old = _read_manifest(folder)
        if old is not None and not overwrite:
            if old["fingerprint"] != fingerprint:
                raise InputError(
                    f"{folder.path}: holds a tokenizer of another corpus, size or release of tokenizers; "
                    "choose another folder, or --overwrite"
                )
            found = {name: folder.sha256(name) for name in old["files"]}
            if altered := [name for name, digest in found.items() if digest not in (None, old["files"][name])]:
                raise CorpusError(
                    f"{folder.path / altered[0]}: is truncated or altered (its checksum differs); "
                    "delete it and run again to rewrite it"
                )
            if None not in found.values():
                return old["entries"], False
        elif old is None and (folder.path / "tokenizer.json").exists():
            raise CorpusError(f"{folder.path}: holds tokenizer.json but no {MANIFEST}; choose another folder")
        trained = _train(path, vocab_size, progress or Progress())
        entries = trained.get_vocab_size()
        if entries < vocab_size:
            log.warning("%s: gives %d entries, not %d: it has no more pairs to join", path, entries, vocab_size)
        manifest = {"fingerprint": fingerprint, "corpus_sha256": digest, "vocab_size": vocab_size, "entries": entries}
        manifest |= {"versions": {"tokenizers": tokenizers.__version__}}
        files = _files(trained)
        manifest["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
        # the manifest is first to take its name: a run that is killed while the others take theirs goes on
        with folder.stream(MANIFEST, *files) as opened:
            for file, data in zip(
                opened, [(json.dumps(manifest, indent=1) + "\n").encode(), *files.values()], strict=True
            ):
                file.write(data)
            folder.remove(*files)  # of the tokenizer that is overwritten
    return entries, True


def _read_manifest(folder):
    path = folder.path / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        if manifest.keys() >= {"fingerprint", "files", "entries"}:
            return manifest
    except FileNotFoundError:
        return None
    except (ValueError, AttributeError):
        pass
    raise CorpusError(f"{path}: is not that of a tokenizer; choose another folder")


def _train(path, vocab_size, progress):
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
    found = records(path)
    first = next(found, None)
    if first is None:
        raise InputError(f"{path}: holds no documents")

    def texts():
        progress.begin("read")
        for _, text in chain([first], found):
            yield text
            progress.advance(len(text))

    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return tokenizer


def _files(trained):
    """The files that transformers loads, by name."""
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(("bos_token", "eos_token", "pad_token"), SPECIAL_TOKENS, strict=True)),
    }
    return {
        "tokenizer.json": trained.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }
