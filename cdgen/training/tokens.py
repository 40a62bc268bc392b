"""Token pools: corpora that are tokenised once into memory-mapped files, and their blocks.

A document is BOS, its tokens, EOS. A pass over a pool shuffles its documents, concatenates them and cuts the result
into blocks (Ulm, Du and Snaebjarnarson, arXiv 2510.08245). It reads the blocks in random order, since a small batch of
consecutive ones would hold little more than one long document. A pass over L tokens in blocks of B tokens has
floor(L / B) blocks, contains no token twice, and drops the last L mod B tokens. The next pass is shuffled differently,
so it drops other tokens. Blocks are computed when they are read.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from cdgen.errors import CorpusError, InputError
from cdgen.models.tokenizers import encode
from cdgen.models.vocabulary import vocabulary_size
from cdgen.storage.folder import check_regular, file_sha256

try:
    import fcntl
except ImportError:  # Windows: two processes may tokenise the same corpus, and the first one to finish is used
    fcntl = None  # type: ignore[assignment]

_FILES = ("tokens.bin", "starts.bin")
_GROUP = 1 << 22  # characters that are given to the tokenizer at once


class TokenFile:
    """The tokens of one corpus, as :func:`tokenize` wrote them.

    Attributes:
        tokens: memory map of the token ids, uint16 or uint32 [tokens].
        starts: position of each document's first token, and the total: int64 [documents + 1].
    Raises:
        CorpusError: a file is missing, or its content is not what was written.
    """

    tokens: npt.NDArray[np.unsignedinteger]
    starts: npt.NDArray[np.int64]

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        try:
            check_regular(folder / "pool.json")
            about = json.loads((folder / "pool.json").read_text(encoding="utf-8"))
            for name in _FILES:
                if file_sha256(folder / name) != about["sha256"][name]:
                    raise CorpusError(f"{folder / name}: is truncated or altered; delete the folder {folder} and rerun")
            self.starts = np.fromfile(folder / "starts.bin", dtype=np.int64)
            self.tokens = np.memmap(folder / "tokens.bin", dtype=np.dtype(about["dtype"]), mode="r")
            lengths = [about["tokens"], about["documents"] + 1]
            damaged = [len(self.tokens), len(self.starts)] != lengths or about["dtype"] not in ("uint16", "uint32")
        except OSError as error:
            raise CorpusError(f"{folder}: cannot be read: {error}; delete this folder and rerun") from error
        except (ValueError, KeyError, TypeError, RecursionError):
            damaged = True
        if damaged:
            raise CorpusError(f"{folder / 'pool.json'}: is damaged; delete the folder {folder} and rerun")


def tokenize(
    texts: Callable[[], Iterable[str]], tokenizer: PreTrainedTokenizerBase, folder: str | Path, name: str
) -> TokenFile:
    """Tokenise a corpus into a folder, unless the folder exists, and open it.

    Args:
        texts: function that returns the documents. It is only called if the folder does not exist.
        tokenizer: a fast tokenizer with BOS and EOS.
        folder: folder for this corpus and tokenizer; its name must identify both. It appears completely or not at all.
        name: the corpus's name, for messages.
    Raises:
        InputError: the corpus has no documents or one that cannot be encoded, or the tokenizer has no BOS or EOS.
        CorpusError: the folder cannot be written.
    """
    folder = Path(folder)
    if None in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        raise InputError(f"{name}: the tokenizer has no BOS or no EOS token; every document needs both")
    if not folder.exists():
        _make(texts, tokenizer, folder, name)
    return TokenFile(folder)


def _make(texts: Callable[[], Iterable[str]], tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> None:
    temporary = folder.with_name(f".tmp-{folder.name}")
    try:
        with _lock(folder.parent):
            if not folder.exists():  # another process may have made it while this one waited
                shutil.rmtree(temporary, ignore_errors=True)  # left by a process that was killed
                try:
                    temporary.mkdir()
                    _write(texts(), tokenizer, temporary, name)
                    temporary.replace(folder)
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        if error.filename and Path(error.filename).parent not in (temporary, folder.parent):
            raise  # the error concerns a file of the corpus
        raise CorpusError(f"{folder}: cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Make a folder and lock it, so that only one process at a time tokenises into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY) if fcntl else None
    except OSError as error:
        raise CorpusError(
            f"{folder}: tokenised corpora cannot be kept here: {error.strerror}; set CDGEN_CACHE to another folder"
        ) from error
    try:
        if lock is not None:
            with contextlib.suppress(OSError):  # on a file system without locks, as on Windows
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _write(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, folder: Path, name: str) -> None:
    dtype = np.dtype(np.uint16 if vocabulary_size(tokenizer) <= 2**16 else np.uint32)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokens = documents = 0
    with open(folder / "tokens.bin", "wb") as token_file, open(folder / "starts.bin", "wb") as start_file:
        start_file.write(np.int64(0).tobytes())
        for group in _groups(texts):
            encoded = encode(tokenizer, group, name)
            token_file.write(np.array([x for ids in encoded for x in (bos, *ids, eos)], dtype).tobytes())
            ends = tokens + np.cumsum([len(ids) + 2 for ids in encoded], dtype=np.int64)
            start_file.write(ends.tobytes())
            tokens, documents = int(ends[-1]), documents + len(encoded)
    if not documents:
        raise InputError(f"{name}: holds no documents")
    digests = {name: file_sha256(folder / name) for name in _FILES}
    about = {"dtype": dtype.name, "documents": documents, "tokens": tokens, "sha256": digests}
    (folder / "pool.json").write_text(json.dumps(about), encoding="utf-8")


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Group documents that are not blank into lists of about :data:`_GROUP` characters."""
    group: list[str] = []
    size = 0
    for text in texts:
        if text.strip():
            group.append(text)
            size += len(text)
        if size >= _GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


class _Pass(NamedTuple):
    """The shuffled documents of a pass, their concatenation, and the order in which its blocks are read."""

    order: npt.NDArray[np.int64]  # [documents], indices of the documents in shuffled order
    ends: npt.NDArray[np.int64]  # [documents], position after each one's last token in the concatenation
    blocks: npt.NDArray[np.int64]  # [blocks], numbers of the blocks, in the order in which they are read


class Pool:
    """Blocks of `block_size` tokens from one or more corpora, whose documents are shuffled together.

    Args:
        files: the tokenised corpora.
        block_size: tokens per block.
        seed: seed of the shuffles.
        name: the pool's name, for messages.
        stream: random stream; pools with the same seed and different streams are shuffled independently.
    Attributes:
        tokens: tokens per pass.
        blocks: blocks per pass.
    Raises:
        InputError: the corpora have fewer tokens than one block.
    """

    def __init__(self, files: Sequence[TokenFile], block_size: int, seed: int, name: str, stream: int = 0) -> None:
        self.files, self.block_size, self.seed, self.stream = files, block_size, seed, stream
        # For each document, [documents]: its number of tokens, its file, and the position of its first token there.
        self.lengths = np.concatenate([np.diff(file.starts) for file in files])
        self.owner = np.repeat(np.arange(len(files)), [len(file.starts) - 1 for file in files])
        self.first = np.concatenate([file.starts[:-1] for file in files])
        self.tokens = int(self.lengths.sum())
        self.blocks = self.tokens // block_size
        if not self.blocks:
            raise InputError(f"{name}: has {self.tokens} tokens, fewer than one block of {block_size}; give more text")
        self._pass = lru_cache(maxsize=2)(self._shuffle)  # a batch may hold the end of a pass and the start of the next

    def block(self, number: int) -> npt.NDArray[np.int64]:
        """Return block `number`, counted over all passes: int64 [block_size]."""
        which_pass, which = divmod(number, self.blocks)
        order, ends, blocks = self._pass(which_pass)
        start = int(blocks[which]) * self.block_size  # position in the concatenation of the pass
        piece = int(np.searchsorted(ends, start, side="right"))
        block = np.empty(self.block_size, dtype=np.int64)
        filled = 0
        while filled < self.block_size:
            document = order[piece]
            skip = start + filled - (ends[piece] - self.lengths[document])
            take = min(self.lengths[document] - skip, self.block_size - filled)
            first = self.first[document] + skip
            block[filled : filled + take] = self.files[self.owner[document]].tokens[first : first + take]
            filled, piece = filled + take, piece + 1
        return block

    def _shuffle(self, which_pass: int) -> _Pass:
        key = self.seed, self.stream, which_pass
        order = permutation(len(self.lengths), *key)
        return _Pass(order, np.cumsum(self.lengths[order]), permutation(self.blocks, *key, 1))


def permutation(count: int, *key: int) -> npt.NDArray[np.int64]:
    """Return a permutation of 0 to `count` - 1 that depends on the key (integers of 0 or more) alone: int64 [count].

    It sorts raw words of a generator, which numpy guarantees to keep stable. numpy's own shuffle may change between
    releases.
    """
    return np.random.Philox(np.random.SeedSequence(key)).random_raw(count).argsort(kind="stable")
