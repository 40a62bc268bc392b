"""The index of all documents: 28 bytes per document, which decide splits, duplicates and budgets without the texts.

All decisions follow from a hash of the text. Its first 8 bytes decide the split, and the other 8 the order in which a
budget is filled. Equal texts are therefore in the same split, whatever their sources and their order. If the corpus is
split by file, the hashes of all documents of a file decide the split of the file instead.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from cdgen.errors import InputError
from cdgen.prepare.by_file import File, held_out
from cdgen.prepare.sources import Source
from cdgen.values import real

TRAIN, TEST, SEEDS, LEFT_OUT = 0, 1, 2, 3
SPLITS = ("train", "test", "seeds")

_PIECE = 1 << 20  # characters of a text whose words are counted at once


class Decision(NamedTuple):
    """The split of every document, and what is counted per source."""

    splits: np.ndarray  # uint8 [documents]: TRAIN, TEST, SEEDS or LEFT_OUT
    counts: list[dict[str, Any]]  # {"duplicates", "over_budget", each split: {"documents", "words", "bytes"}}


class _Columns(NamedTuple):
    """The index as arrays, each of shape [documents]."""

    split_hash: np.ndarray  # uint64
    order_hash: np.ndarray  # uint64
    file: np.ndarray  # uint32, number of the file
    source: np.ndarray  # uint16, number of the source
    words: np.ndarray  # uint32
    bytes: np.ndarray  # uint64


class Index:
    """Collects documents with :meth:`add`; :meth:`decide` then gives the split of each. `bytes` has their sizes.

    Call :meth:`begin_file` before the documents of each file.
    """

    def __init__(self, seed: int) -> None:
        self._key = blake2b(str(seed).encode(), digest_size=32).digest()
        self._hashes, self._words, self.bytes = bytearray(), array("I"), array("Q")
        self._sources, self._starts = array("H"), array("Q")  # the source and the first document of each file

    def __len__(self) -> int:
        return len(self._words)

    def begin_file(self, source: int) -> None:
        """Start a file of the source with this number; the documents that are added next belong to it."""
        self._sources.append(source)
        self._starts.append(len(self))

    def add(self, text: str) -> None:
        """Add a document, without leading and trailing space."""
        data = text.encode()
        self._hashes += blake2b(data, digest_size=16, key=self._key).digest()
        self._words.append(count_words(text))
        self.bytes.append(len(data))

    def decide(self, sources: Sequence[Source], test: float, seeds: float, split_by: str) -> Decision:
        """Decide the split of every document, and count.

        Args:
            sources: the sources, in the order of their numbers.
            test: share of the documents in the test split: the probability that a document's hash falls into it. By
                file, the minimum share of each source's words.
            seeds: share of the documents that are held out as seeds, likewise.
            split_by: one of :data:`~cdgen.prepare.by_file.UNITS`.
        Raises:
            InputError: a source has too few files to be split by file.
        """
        columns = self._columns()
        order = np.lexsort((columns.split_hash, columns.order_hash))  # stable: the first of equal texts comes first
        text = _text_numbers(columns, order)
        by_source = [order[columns.source[order] == number] for number in range(len(sources))]
        # Remove duplicates within each source first, then documents over its budget, then duplicates across sources, so
        # that no source uses up the budget of another.
        repeated = np.zeros(len(self), dtype=bool)
        for chosen in by_source:
            _mark_repeated(repeated, chosen, text)
        if split_by == "file":
            # Texts over a budget count, and so do texts that other sources also have, so that neither moves a file.
            own_words = np.where(repeated, 0, columns.words)
            splits = self._splits_of_files(sources, own_words, test, seeds)[columns.file]
        else:
            splits = _splits(columns.split_hash, test, seeds)
        over = _over_budget(sources, by_source, repeated, columns.words)
        _mark_repeated(repeated, order[~(repeated | over)[order]], text)
        splits[repeated | over] = LEFT_OUT
        return Decision(splits, _counts(len(sources), columns, splits, repeated, over))

    def _columns(self) -> _Columns:
        split_hash, order_hash = np.frombuffer(self._hashes, dtype="<u8").reshape(-1, 2).T
        words, size = (np.frombuffer(column, dtype=column.typecode) for column in (self._words, self.bytes))
        file = np.repeat(np.arange(len(self._starts), dtype=np.uint32), np.diff([*self._starts, len(self)]))
        source = np.frombuffer(self._sources, dtype=np.uint16)[file]
        return _Columns(split_hash, order_hash, file, source, words, size)

    def _splits_of_files(self, sources: Sequence[Source], words: np.ndarray, test: float, seeds: float) -> np.ndarray:
        """Return the split of every file, uint8 [files], given the words of every document; repeated ones have none."""
        by_source: list[list[File]] = [[] for _ in sources]
        for number, (start, end) in enumerate(pairwise([*self._starts, len(self)])):
            if count := int(words[start:end].sum(dtype=np.int64)):
                order = blake2b(self._hashes[16 * start : 16 * end], digest_size=16).digest()
                by_source[self._sources[number]].append(File(number, order, count))
        splits = np.full(len(self._starts), TRAIN, dtype=np.uint8)
        for source, files in zip(sources, by_source, strict=True):
            splits_of_source = held_out(source.name, files, test, seeds)
            for code, chosen in zip((TEST, SEEDS), splits_of_source, strict=True):
                splits[chosen] = code
        return splits


def _splits(split_hash: np.ndarray, test: float, seeds: float) -> np.ndarray:
    """Return the split of every document by its hash, as if none were left out."""
    splits = np.full(len(split_hash), TRAIN, dtype=np.uint8)
    splits[split_hash < _scaled(test)] = TEST
    if seeds:  # from the other end, so that a change of one share does not move the other split
        splits[split_hash >= np.uint64(2**64 - 1) - _scaled(seeds)] = SEEDS
    return splits


def _text_numbers(columns: _Columns, order: np.ndarray) -> np.ndarray:
    """Return one number per document: equal texts have the same number, different texts have different ones."""
    order_hash, split_hash = columns.order_hash[order], columns.split_hash[order]
    same = (order_hash[1:] == order_hash[:-1]) & (split_hash[1:] == split_hash[:-1])
    text = np.empty(len(order), dtype=np.int64)
    text[order] = np.concatenate([[0], np.cumsum(~same)])[: len(order)]
    return text


def _mark_repeated(repeated: np.ndarray, chosen: np.ndarray, text: np.ndarray) -> None:
    """Mark all but the first of equal texts among the documents `chosen`, which are sorted."""
    repeated[chosen[1:][text[chosen[1:]] == text[chosen[:-1]]]] = True


def _over_budget(
    sources: Sequence[Source], by_source: list[np.ndarray], repeated: np.ndarray, words: np.ndarray
) -> np.ndarray:
    """Return which documents no longer fit into their source's budget: bool [documents]."""
    over = np.zeros(len(words), dtype=bool)
    unique = [chosen[~repeated[chosen]] for chosen in by_source]
    budgets = _budgets(sources, [int(words[chosen].sum(dtype=np.int64)) for chosen in unique])
    for chosen, budget in zip(unique, budgets, strict=True):
        if budget is not None:
            over[chosen[np.cumsum(words[chosen], dtype=np.int64) > budget]] = True
    return over


def _counts(
    number_of_sources: int, columns: _Columns, splits: np.ndarray, repeated: np.ndarray, over: np.ndarray
) -> list[dict[str, Any]]:
    counts = []
    for number in range(number_of_sources):
        own = columns.source == number
        about: dict[str, Any] = {"duplicates": int((repeated & own).sum()), "over_budget": int((over & own).sum())}
        for code, name in enumerate(SPLITS):
            chosen = own & (splits == code)
            about[name] = {
                "documents": int(chosen.sum()),
                "words": int(columns.words[chosen].sum(dtype=np.int64)),
                "bytes": int(columns.bytes[chosen].sum(dtype=np.int64)),
            }
        counts.append(about)
    return counts


def _scaled(share: float) -> np.uint64:
    """Return a share as a threshold for 64-bit hashes."""
    threshold: np.uint64 = np.uint64(min(int(share * 2**64), 2**64 - 1))
    return threshold


def _budgets(sources: Sequence[Source], words: list[int]) -> list[float | None]:
    """Return the number of words that each source may give, None for no limit."""
    scarcest = min(
        (have / source.weight for source, have in zip(sources, words, strict=True) if source.weight is not None),
        default=0,
    )
    return [source.words if source.weight is None else round(source.weight * scarcest) for source in sources]


def check_shares(test: float, seeds: float) -> tuple[float, float]:
    """Return the shares of the splits as floats.

    Raises:
        InputError: they are impossible.
    """
    test, seeds = real("test", test, 0, 1), real("seeds", seeds, 0, 1)
    if test + seeds >= 1:
        raise InputError(f"test = {test}, seeds = {seeds}: nothing is left to train on")
    return test, seeds


def count_words(text: str) -> int:
    """Return `len(text.split())` without holding all words of a huge text in memory."""
    starts = range(0, len(text), _PIECE)
    cut = sum(not text[at - 1].isspace() and not text[at].isspace() for at in starts[1:])  # words that two pieces share
    return sum(len(text[at : at + _PIECE].split()) for at in starts) - cut
