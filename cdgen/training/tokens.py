"""Token pools: corpora tokenised once into memory-mapped files, and cut into blocks that are computed when asked for.

A document is BOS, its tokens, EOS. A pass over a pool shuffles its documents, joins them and cuts the join into blocks
(Ulm, Du and Snaebjarnarson, arXiv 2510.08245): every whole block once, and at most `block_size - 1` tokens at the end
of the join are left over. The next pass shuffles anew, so that others are left over, and blocks begin elsewhere. The
law of a pass over documents of L tokens in all, in blocks of B: floor(L / B) blocks, no token twice, L mod B left out.
"""

import contextlib
import json
import os
import shutil
from functools import lru_cache
from pathlib import Path

import numpy as np

from cdgen.errors import CorpusError, InputError

try:
    import fcntl
except ImportError:  # Windows, where two processes may both tokenise, and the first to finish is used
    fcntl = None

_AT_ONCE = 1 << 22  # characters given to the tokenizer together


class TokenFile:
    """The tokens of one corpus: `tokens`, a memory map, and `starts`, int64 [documents + 1]."""

    def __init__(self, folder):
        folder = Path(folder)
        try:
            about = json.loads((folder / "pool.json").read_text())
            self.starts = np.fromfile(folder / "starts.bin", dtype=np.int64)
            self.tokens = np.memmap(folder / "tokens.bin", dtype=about["dtype"], mode="r")
        except (OSError, ValueError, KeyError) as error:
            raise CorpusError(f"{folder}: cannot be read: {error}; delete the folder and run again") from error
        if [len(self.tokens), len(self.starts)] != [about["tokens"], about["documents"] + 1]:
            raise CorpusError(f"{folder}: a file is cut short; delete the folder and run again")


def tokenize(texts, tokenizer, folder, name):
    """Write a pool, unless it is there already.

    Args:
        texts: function that gives an iterator of documents; called only where the pool has to be made.
        tokenizer: of transformers, fast, with BOS and EOS.
        folder: the pool's own, named after all that decides what is in it. It appears whole or not at all.
        name: of the corpus, for messages.
    Returns:
        :class:`TokenFile`
    Raises:
        InputError: no documents, or a tokenizer without BOS or EOS. CorpusError: the disk is full.
    """
    folder = Path(folder)
    marks = tokenizer.bos_token_id, tokenizer.eos_token_id
    if None in marks:
        raise InputError(f"{name}: the tokenizer has no start or end of text; documents are put between the two")
    if not folder.exists():
        _make(texts, tokenizer, marks, folder, name)
    return TokenFile(folder)


def _make(texts, tokenizer, marks, folder, name):
    temporary = folder.with_name(f".tmp-{folder.name}")
    try:
        with _only_one(folder.parent):
            if not folder.exists():  # another process of this run may have made it meanwhile
                shutil.rmtree(temporary, ignore_errors=True)  # of a run that was killed
                temporary.mkdir()
                _write(texts(), tokenizer, marks, temporary, name)
                temporary.replace(folder)
    except OSError as error:
        if error.filename and Path(error.filename).parent not in (temporary, folder.parent):
            raise  # the corpus's own file
        raise CorpusError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def _only_one(folder):
    """Make the folder, and wait until no other process tokenises into it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY) if fcntl else None
    try:
        if fcntl:
            with contextlib.suppress(OSError):  # a file system without locks: then both may, and the first is used
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl:
            os.close(lock)


def _write(texts, tokenizer, marks, folder, name):
    dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
    tokens = documents = 0
    with open(folder / "tokens.bin", "wb") as token_file, open(folder / "starts.bin", "wb") as start_file:
        start_file.write(np.int64(0).tobytes())
        for group in _groups(texts):
            # a document's own "</s>" is text, not its end
            encoded = tokenizer(group, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            token_file.write(np.array([x for ids in encoded for x in (marks[0], *ids, marks[1])], dtype).tobytes())
            ends = tokens + np.cumsum([len(ids) + 2 for ids in encoded], dtype=np.int64)
            start_file.write(ends.tobytes())
            tokens, documents = int(ends[-1]), documents + len(encoded)
    if not documents:
        raise InputError(f"{name}: holds no documents")
    about = {"dtype": np.dtype(dtype).name, "documents": documents, "tokens": tokens}
    (folder / "pool.json").write_text(json.dumps(about))


def _groups(texts):
    group, size = [], 0
    for text in texts:
        if text.strip():
            group.append(text)
            size += len(text)
        if size >= _AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group


class Pool:
    """Blocks of `block_size` tokens out of one or more corpora, which are shuffled together.

    Args:
        files: list of :class:`TokenFile`. name: for messages. seed: of the shuffles.
        stream: two pools of one seed shuffle unlike each other where these differ.
    Attributes:
        blocks: whole blocks of a pass.
    Raises:
        InputError: fewer tokens than one block.
    """

    def __init__(self, files, block_size, seed, name, stream=0):
        self.files, self.block_size, self.seed, self.stream = files, block_size, seed, stream
        self.lengths = np.concatenate([np.diff(file.starts) for file in files])
        self.owner = np.repeat(np.arange(len(files)), [len(file.starts) - 1 for file in files])
        self.first = np.concatenate([file.starts[:-1] for file in files])
        self.tokens = int(self.lengths.sum())
        self.blocks = self.tokens // block_size
        if not self.blocks:
            raise InputError(f"{name}: has {self.tokens} tokens, not one block of {block_size}; give more text")
        self._arranged = lru_cache(maxsize=2)(self._arrange)  # a batch may hold the end of a pass and the next's start

    def block(self, number):
        """Block `number`, counted over all passes: int64 [block_size]."""
        at, which = divmod(number, self.blocks)
        order, ends = self._arranged(at)
        begin = which * self.block_size
        piece, out = int(np.searchsorted(ends, begin, side="right")), np.empty(self.block_size, dtype=np.int64)
        filled = 0
        while filled < self.block_size:
            document = order[piece]
            skip = begin + filled - (ends[piece] - self.lengths[document])
            take = min(self.lengths[document] - skip, self.block_size - filled)
            start = self.first[document] + skip
            out[filled : filled + take] = self.files[self.owner[document]].tokens[start : start + take]
            filled, piece = filled + take, piece + 1
        return out

    def _arrange(self, at):
        """(documents in the order of pass `at`, where each ends in their join)."""
        order = permutation(len(self.lengths), self.seed, self.stream, at)
        return order, np.cumsum(self.lengths[order])


def permutation(count, *key):
    """A permutation of `count` numbers, int64, that is a function of the key (integers of 0 or more) alone.

    numpy may change its own shuffle from release to release; it promises the raw words of a generator for ever.
    """
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count).argsort(kind="stable")
