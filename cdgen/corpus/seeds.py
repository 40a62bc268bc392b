"""Seeds: the prompts that a corpus is generated from, read from text, JSON lines, Parquet or a `datasets` folder."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from cdgen.corpus.records import records
from cdgen.errors import InputError

log = logging.getLogger("cdgen")


@dataclass(frozen=True)
class Seed:
    """A prompt of a corpus: its name in the corpus, and its token ids."""

    id: str
    token_ids: list[int]


def read_seeds(
    paths: Iterable[str | os.PathLike[str]],
    prompt_ids: Callable[[str, str], list[int]],
    *,
    field: str = "text",
    prefix_tokens: int | None = None,
    chunk_words: int | None = None,
) -> tuple[list[Seed], int]:
    """Read seeds from one or more files.

    Args:
        paths: .txt (one prompt per line), .jsonl, .jsonl.gz, .parquet, or folders of `datasets`; records may have an
            `id`.
        prompt_ids: function (text, name) -> list of token ids, such as `ContrastiveLM.prompt_ids`.
        field: name of the records' field that holds the text.
        prefix_tokens: number of tokens to keep of every seed; default all.
        chunk_words: cut documents into chunks of at least this many words; each chunk is a seed, and a .txt file is one
            document. Documents with fewer words are dropped.
    Returns:
        (the seeds, number of texts that were dropped because they were empty or too short)
    Raises:
        InputError: a file cannot be read (the message names the file and the place), no seed is left, or every seed is
            shorter than the prefix.
    """
    for name, value in (("prefix_tokens", prefix_tokens), ("chunk_words", chunk_words)):
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: must be 1 or more")
    files = [Path(path) for path in paths]
    texts, dropped = _named_texts(files, field, chunk_words)
    seeds = [Seed(name, prompt_ids(text, f"seed {name}")[:prefix_tokens]) for name, text in texts]
    if not seeds:
        why = f"; {dropped} were empty{' or too short' if chunk_words else ''}" if dropped else ""
        raise InputError(f"seeds: none in {', '.join(map(str, files))}{why}")
    _check_lengths(seeds, prefix_tokens or 0)
    return seeds, dropped


def _named_texts(files: list[Path], field: str, chunk_words: int | None) -> tuple[list[tuple[str, str]], int]:
    """Return the seeds' (name, text) pairs, and how many texts were dropped."""
    found, dropped = [], 0
    for path in files:
        label = path.name if sum(other.name == path.name for other in files) == 1 else str(path)
        for record, text in records(
            path,
            field,
            whole=chunk_words is not None,
            remedy="choose one with read_seeds(field=NAME)",
            noun="seeds",
            utf8_only=True,
        ):
            name = f"{label}:{record}" if isinstance(record, int) else record
            pieces = [(name, text)] if chunk_words is None else _chunks(name, text, chunk_words)
            if pieces and text.strip():
                found += pieces
            else:
                dropped += 1
    return found, dropped


def _check_lengths(seeds: list[Seed], prefix_tokens: int) -> None:
    short = sum(len(seed.token_ids) < prefix_tokens for seed in seeds)
    if short == len(seeds):
        raise InputError(
            f"prefix_tokens = {prefix_tokens}: all {short} seeds are shorter, the longest has "
            f"{max(len(seed.token_ids) for seed in seeds)} tokens; give longer seeds or a smaller number"
        )
    if short:
        log.warning("%d of %d seeds have fewer than %d tokens and are used whole", short, len(seeds), prefix_tokens)


def fingerprint(seeds: Iterable[Seed]) -> str:
    """Return a sha256 over the seeds' names and token ids, in order."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(json.dumps([seed.id, seed.token_ids]).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _chunks(name: str, text: str, size: int) -> list[tuple[str, str]]:
    """Cut a text into (name, chunk) pairs of `size` words; the last chunk also has the words that are left over."""
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    count = len(starts) // size
    ends = [starts[at * size] for at in range(1, count)] + [len(text)]
    return [(f"{name}#{at}", text[starts[at * size] : ends[at]].rstrip()) for at in range(count)]
