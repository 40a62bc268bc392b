"""Seeds: the prompts a corpus grows from, read from text, JSON lines, Parquet or a `datasets` folder."""

import hashlib
import json
import logging
import re
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


def read_seeds(paths, prompt_ids, *, field="text", prefix_tokens=None, chunk_words=None):
    """Read seeds from one or more files.

    Args:
        paths: .txt (a prompt a line), .jsonl, .jsonl.gz, .parquet, or folders of `datasets`; records may have an `id`.
        prompt_ids: function (text, name) -> list of token ids, as `ContrastiveLM.prompt_ids`.
        field: of the records, the one that holds the text.
        prefix_tokens: keep the first so many tokens; default all.
        chunk_words: cut documents into chunks of so many words or more, each a seed; then a .txt file is one document.
            A document of fewer words is dropped.
    Returns:
        (list of :class:`Seed`, number of empty or too short ones dropped)
    Raises:
        InputError: a file that cannot be read, by name and place; no seed left; every seed shorter than the prefix.
    """
    for name, value in (("prefix_tokens", prefix_tokens), ("chunk_words", chunk_words)):
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: must be 1 or more")
    seeds, dropped = [], 0
    paths = [Path(path) for path in paths]
    reading = {"whole": chunk_words is not None, "flag": "--seed-field", "noun": "seeds", "utf8_only": True}
    for path in paths:
        label = path.name if sum(other.name == path.name for other in paths) == 1 else str(path)
        for record, text in records(path, field, **reading):
            name = f"{label}:{record}" if isinstance(record, int) else record
            pieces = [(name, text)] if chunk_words is None else _chunks(name, text, chunk_words)
            if not pieces or not text.strip():
                dropped += 1
                continue
            seeds += [Seed(name, prompt_ids(piece, f"seed {name}")[:prefix_tokens]) for name, piece in pieces]
    if not seeds:
        why = f"; {dropped} were empty{' or too short' if chunk_words else ''}" if dropped else ""
        raise InputError(f"seeds: none in {', '.join(map(str, paths))}{why}")
    if short := sum(len(seed.token_ids) < (prefix_tokens or 0) for seed in seeds):
        if short == len(seeds):
            raise InputError(
                f"prefix_tokens = {prefix_tokens}: all {short} seeds are shorter, the longest has "
                f"{max(len(seed.token_ids) for seed in seeds)} tokens; give longer seeds or a smaller number"
            )
        log.warning("%d of %d seeds have fewer than %d tokens and are used whole", short, len(seeds), prefix_tokens)
    return seeds, dropped


def fingerprint(seeds):
    """sha256 over the seeds' names and token ids, in order."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(json.dumps([seed.id, seed.token_ids]).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _chunks(name, text, size):
    """(name, chunk) pairs of `size` words each, the last with what is left over."""
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    count = len(starts) // size
    ends = [starts[at * size] for at in range(1, count)] + [len(text)]
    return [(f"{name}#{at}", text[starts[at * size] : ends[at]].rstrip()) for at in range(count)]
