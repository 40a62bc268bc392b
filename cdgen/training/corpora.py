"""Tokenizers, and the cache of tokenised corpora."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from cdgen.corpus.find import Corpus, digest
from cdgen.environment import cache_folder
from cdgen.errors import InputError
from cdgen.models import tokenizers
from cdgen.storage.progress import BYTES, Progress, Silent
from cdgen.training.tokens import TokenFile, tokenize


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
    return Tokenizer(module, str(folder), digest([content, str((module.bos_token_id, module.eos_token_id))]))


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

    folder = cache_folder() / "tokens" / digest([corpus.fingerprint, tokenizer.fingerprint])[:32]
    return tokenize(texts, tokenizer.module, folder, corpus.name)
