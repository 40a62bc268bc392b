"""Overlap of a corpus with a training text: n-grams that occur in both, and the longest copied span."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cdgen.evaluation.corpus_stats.sorted_parts import SortedParts
from cdgen.evaluation.corpus_stats.words import Block, Words

SIZES = (8, 13)
_RECORD = np.dtype([("key", "<u8"), ("place", "<u4")])  # an n-gram, and the index of its last word in its run
_CHUNK = 1 << 17  # bytes of a bitmap that are searched at once


@dataclass(frozen=True)
class Overlap:
    """What a corpus has in common with a training text.

    Attributes:
        copied: for n = 8 and 13, the share of the corpus's n-grams that occur in the training text; None if it has no
            n-grams.
        longest_span: maximum number of successive words of a document of which every 13-gram occurs in the training
            text; if no 13-gram does, of which every 8-gram does; otherwise 0. The n-grams may come from several places
            of the training text, so this is an upper bound for the longest literal copy.
    """

    copied: dict[int, float | None]
    longest_span: int


class TrainingGrams:
    """The distinct 8-grams and 13-grams of a training text.

    Args:
        folder: folder for temporary files: up to 16 bytes per word.
    """

    def __init__(self, folder: Path) -> None:
        self.parts = {size: SortedParts(folder / f"training-{size}-grams") for size in SIZES}

    def add(self, block: Block) -> None:
        """Add a block of the training text.

        Raises:
            CorpusError: the disk is full.
        """
        for size, hashes, _ in block.grams(*SIZES):
            self.parts[size].add(np.unique(hashes))


class CopiedGrams:
    """Finds the 8-grams and 13-grams of a corpus that occur in a training text. It holds two bits per word in memory.

    Args:
        training: the training text.
        folder: folder for temporary files: up to 24 bytes per word.
    """

    def __init__(self, training: TrainingGrams, folder: Path) -> None:
        self._training = training
        self._parts = {size: SortedParts(folder / f"corpus-{size}-grams", _RECORD) for size in SIZES}
        self._totals = dict.fromkeys(SIZES, 0)
        self._words = 0
        self._bases: list[int] = []  # index in the corpus of the first word of each run

    def add(self, block: Block) -> None:
        """Add a block of the corpus.

        Raises:
            CorpusError: the disk is full.
        """
        self._bases.append(self._words - block.carried)
        self._words += len(block.words) - block.carried
        for size, hashes, ends in block.grams(*SIZES):
            order = np.argsort(hashes)
            records = np.empty(len(hashes), _RECORD)
            records["key"], records["place"] = hashes[order], ends[order]
            self._parts[size].add(records)
            self._totals[size] += len(hashes)

    def overlap(self) -> Overlap:
        """Return what was found, and delete the temporary files of the corpus."""
        copied: dict[int, float | None] = {}
        longest_span = 0
        for size, total in self._totals.items():
            bitmap, count = self._found(size)
            copied[size] = count / total if total else None
            if chain := longest_chain(bitmap):
                longest_span = chain + size - 1
        return Overlap(copied, longest_span)

    def _found(self, size: int) -> tuple[np.ndarray, int]:
        """Return a bit for each word of the corpus, set if the n-gram that ends with it occurs in the training text.

        The second value is the number of these n-grams.
        """
        count = 0
        bitmap = np.zeros(self._words // 8 + 1, np.uint8)
        training, parts = self._training.parts[size], self._parts[size]
        parts.rewind()
        for limit in training.limits():
            known = training.keys_below(limit)
            for base, records in zip(self._bases, parts.below(limit), strict=True):
                places = base + records["place"][_is_in(records["key"], known)].astype(np.int64)
                count += len(places)
                np.bitwise_or.at(bitmap, places >> 3, (0x80 >> (places & 7)).astype(np.uint8))
        parts.close()
        return bitmap, count


def _is_in(keys: Words, known: Words) -> np.ndarray:
    """Return for each key [N] whether it is among the known ones; both are sorted."""
    if not len(known):
        return np.zeros(len(keys), bool)
    return known[np.minimum(np.searchsorted(known, keys), len(known) - 1)] == keys


def longest_chain(bitmap: np.ndarray) -> int:
    """Return the maximum number of adjacent ones in a bitmap, uint8 [N]."""
    longest, last = 0, -1  # the last zero so far
    for start in range(0, len(bitmap), _CHUNK):
        zeros = np.flatnonzero(np.unpackbits(bitmap[start : start + _CHUNK]) == 0) + 8 * start
        if len(zeros):
            longest = max(longest, int(np.diff(zeros, prepend=last).max()) - 1)
            last = int(zeros[-1])
    return max(longest, 8 * len(bitmap) - 1 - last)
