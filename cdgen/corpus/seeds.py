"""Seeds: the prompts that a corpus is generated from, read from text, JSON lines, Parquet or a `datasets` folder."""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cdgen.corpus.records import HUB, numbered_records
from cdgen.corpus.text_files import check_path
from cdgen.engine.prefix import check_length, first_ids
from cdgen.errors import InputError
from cdgen.values import INT64_MAX, expanded, integer, shown

log = logging.getLogger("cdgen")

_PREFIX_TOKENS = 20  # length of a chunk's prefix in the paper, arXiv 2510.08245


@dataclass(frozen=True)
class Seed:
    """A prompt of a corpus.

    Attributes:
        id: its name, which is unique in the corpus.
        token_ids: the prompt.
        named: whether the name is an id of its own, which keys its noise, instead of its place among the seeds, such as
            FILE:NUMBER. Where a prompt stands must not change its continuations.
    """

    id: str
    token_ids: list[int]
    named: bool = True

    @property
    def own_id(self) -> str | None:
        """The name if it is an id of its own, otherwise None."""
        return self.id if self.named else None


class SeedText(NamedTuple):
    """The text of a seed; `id` and `named` are those of :class:`Seed`."""

    id: str
    text: str
    named: bool = True


def read_seeds(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    prompt_ids: Callable[[str, str], list[int]],
    *,
    field: str = "text",
    prefix_tokens: int | None = None,
    chunk_words: int | None = None,
    longest: int | None = None,
) -> tuple[list[Seed], int]:
    """Read seeds from one or more files: :func:`read_texts`, then :func:`encode_texts`.

    Args:
        paths: one path or several: .txt (one prompt per line), .jsonl, both also .gz or .zst, .parquet, or folders of
            `datasets`; records may have an `id`.
        prompt_ids: function (text, name) -> list of token ids, such as `ContrastiveLM.prompt_ids`.
        field: name of the records' field that holds the text.
        prefix_tokens: number of tokens to keep of every seed; default all.
        chunk_words: cut documents into chunks of at least this many words; each chunk is a seed, and a .txt file is one
            document. Documents with fewer words are dropped.
        longest: greatest number of tokens of a seed, after it was cut to `prefix_tokens`; default any.
    Returns:
        (the seeds, number of texts that were dropped because they were empty or too short)
    Raises:
        InputError: a file cannot be read (the message names the file and the place), no seed is left, every seed is
            shorter than the prefix, or one is longer than `longest`.
    """
    texts, dropped = read_texts(paths, field=field, chunk_words=chunk_words)
    return encode_texts(texts, prompt_ids, prefix_tokens=prefix_tokens, longest=longest), dropped


def read_texts(
    paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    field: str = "text",
    chunk_words: int | None = None,
) -> tuple[list[SeedText], int]:
    """Read the texts of seeds, which needs no tokenizer, and warn about those that are dropped.

    A seed's name is its record's own `id`, or else FILE:NUMBER, where NUMBER counts lines or rows from 1. Records whose
    `id` is not unique among all seeds are named FILE:NUMBER as well. `#0`, `#1` and so on number the chunks of a
    document.

    Returns:
        (the texts, number of texts that were dropped because they were empty or too short)

    See :func:`read_seeds` for arguments and errors.
    """
    size = None if chunk_words is None else integer("chunk_words", chunk_words, 1, INT64_MAX)
    files = _files(paths)
    found = list(_read(files, field, whole=size is not None))
    texts, empty, short = [], 0, 0
    for name, one in zip(_names(found), found, strict=True):
        text = SeedText(name, one.text, name == one.own_id)
        if not text.text.strip():
            empty += 1
        elif size is None:
            texts.append(text)
        elif chunks := _chunks(text, size):
            texts += chunks
        else:
            short += 1
    why = ", ".join([f"{short} shorter than chunk_words = {size}"] * bool(short) + [f"{empty} empty"] * bool(empty))
    if not texts:
        raise InputError(f"seeds: none in {', '.join(map(str, files))}: {why or 'nothing in it'}")
    if why:
        log.warning("seeds: %d of %d texts are left out: %s", empty + short, len(found), why)
    return texts, empty + short


def encode_texts(
    texts: Sequence[SeedText],
    prompt_ids: Callable[[str, str], list[int]],
    *,
    prefix_tokens: int | None = None,
    longest: int | None = None,
) -> list[Seed]:
    """Return the seeds of texts. Only as much of a long text is encoded as is needed.

    See :func:`read_seeds` for arguments and errors.
    """
    prefix = None if prefix_tokens is None else integer("prefix_tokens", prefix_tokens, 1, INT64_MAX)
    seeds = [encode_text(text, prompt_ids, prefix, longest) for text in texts]
    _check_lengths(seeds, prefix or 0)
    return seeds


def prefix_length(prefix_tokens: int | None, chunk_words: int | None) -> int | None:
    """Return how many tokens of each seed are kept; None for all. Only chunks have a default.

    Raises:
        InputError: `prefix_tokens` is out of range.
    """
    if prefix_tokens is None:
        return None if chunk_words is None else _PREFIX_TOKENS
    return integer("prefix_tokens", prefix_tokens, 1, INT64_MAX)


def encode_text(
    text: SeedText, prompt_ids: Callable[[str, str], list[int]], prefix_tokens: int | None, longest: int | None
) -> Seed:
    """Return the seed of one text.

    See :func:`read_seeds` for arguments and errors.
    """
    bounds = [bound for bound in (prefix_tokens, None if longest is None else longest + 1) if bound is not None]
    name = f"seed {text.id}"

    def encode(part: str) -> list[int]:
        return prompt_ids(part, name)

    ids = first_ids(encode, text.text, min(bounds)) if bounds else encode(text.text)
    check_length(ids, name, longest)
    return Seed(text.id, ids, text.named)


def _files(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Return the paths; raise InputError if there is none, or if two of them name one file."""
    given = list(paths) if isinstance(paths, Iterable) and not isinstance(paths, str | bytes) else [paths]
    if not given:
        raise InputError("seeds: no files are given")
    for path in given:
        if not isinstance(path, str | os.PathLike) or not os.fspath(path):  # Path("") would be the current folder
            raise InputError(f"seeds = {shown(path)}: is not the name of a file")
    files = [expanded(path) for path in given]
    seen: dict[object, Path] = {}
    for path in files:
        key: object = str(path)
        if not str(path).startswith(HUB):
            check_path(path, "seeds")
            key = (path.stat().st_dev, path.stat().st_ino)
        if key in seen:
            same = f"and {path} are one file" if path != seen[key] else "is given twice"
            raise InputError(f"{seen[key]}: {same}; to continue each seed several times, use n")
        seen[key] = path
    return files


class _Found(NamedTuple):
    """A text, its place as FILE:NUMBER, and its record's own id."""

    place: str
    own_id: str | None
    text: str


def _read(files: list[Path], field: str, whole: bool) -> Iterable[_Found]:
    for path in files:
        label = path.name if sum(other.name == path.name for other in files) == 1 else str(path)
        remedy = "choose one with generate_corpus(field=NAME)"
        for one in numbered_records(path, field, remedy=remedy, whole=whole, noun="seeds"):
            yield _Found(f"{label}:{one.number}", one.own_id, one.text)


def _names(found: list[_Found]) -> list[str]:
    """Return a unique name for each text; warn if the records' own ids are not unique."""
    count = Counter(one.own_id for one in found if one.own_id is not None)
    count.update({one.place for one in found} & count.keys())  # an id that looks like a place
    repeated = [one.place for one in found if one.own_id is not None and count[one.own_id] > 1]
    if repeated:
        log.warning(
            "seeds: the ids of %d of %d records are not unique; they are named FILE:NUMBER, such as %s",
            *(len(repeated), len(found), repeated[0]),
        )
    return [one.place if one.own_id is None or count[one.own_id] > 1 else one.own_id for one in found]


def _check_lengths(seeds: list[Seed], prefix_tokens: int) -> None:
    short = sum(len(seed.token_ids) < prefix_tokens for seed in seeds)
    if short == len(seeds):
        raise InputError(
            f"prefix_tokens = {prefix_tokens}: all {short} seeds are shorter, the longest has "
            f"{max(len(seed.token_ids) for seed in seeds)} tokens; give longer seeds or a smaller number"
        )
    if short:
        log.warning("%d of %d seeds have fewer than %d tokens and are used whole", short, len(seeds), prefix_tokens)


class Fingerprint:
    """A sha256 over the names and token ids of seeds, in the order in which they are added."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(self, seed: Seed) -> None:
        """Add a seed."""
        self._digest.update(json.dumps([seed.id, seed.token_ids]).encode() + b"\n")

    def __str__(self) -> str:
        return f"sha256:{self._digest.hexdigest()}"


def fingerprint(seeds: Iterable[Seed]) -> str:
    """Return the fingerprint of seeds."""
    found = Fingerprint()
    for seed in seeds:
        found.add(seed)
    return str(found)


def _chunks(document: SeedText, size: int) -> list[SeedText]:
    """Cut a text into chunks of `size` words; the last chunk also has the words that are left over."""
    starts, count = [], 0
    name, text, named = document
    for word in re.finditer(r"\S+", text):
        if count % size == 0:
            starts.append(word.start())
        count += 1
    starts = [*starts[: count // size], len(text)]
    spans = enumerate(pairwise(starts))
    return [SeedText(f"{name}#{at}", text[start:end].rstrip(), named) for at, (start, end) in spans]
