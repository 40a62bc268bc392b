"""Repetition within documents: 4-grams that occurred before in the same document or window."""

import numpy as np

from cdgen.evaluation.corpus_stats.words import Block, Integers, Words

SIZE = 4
WINDOW = 128  # number of words in a window


class Repetition:
    """Measures how much the documents of a corpus repeat themselves.

    Attributes:
        documents: the mean over documents of 1 - distinct / total 4-grams (seq-rep-4 of Welleck et al. 2020,
            arXiv 1908.04319, for words), or None if no document has four words. Longer documents repeat more. The parts
            of a document of more than two million characters count as documents.
        windows: the same mean over windows of 128 words into which documents are cut, so that it does not depend on
            their lengths. A remainder of fewer than 128 words does not count.
    """

    def __init__(self) -> None:
        self._sums, self._counts = [0.0, 0.0], [0, 0]

    def add(self, block: Block) -> None:
        """Add the documents of a block."""
        for _, hashes, ends in block.grams(SIZE):
            own = ends - SIZE + 1 >= block.carried
            hashes, ends = hashes[own], ends[own]
            self._add(0, hashes, _numbered(block.documents)[ends])
            windows = (block.documents << 32) + block.places // WINDOW
            same = windows[ends] == windows[ends - SIZE + 1]
            self._add(1, hashes[same], _numbered(windows)[ends[same]], WINDOW - SIZE + 1)

    @property
    def documents(self) -> float | None:
        return self._mean(0)

    @property
    def windows(self) -> float | None:
        return self._mean(1)

    def _mean(self, at: int) -> float | None:
        return self._sums[at] / self._counts[at] if self._counts[at] else None

    def _add(self, at: int, hashes: Words, groups: Integers, least: int = 1) -> None:
        """Add the shares of repeated 4-grams of all groups with at least `least` 4-grams; `groups` is [K], sorted."""
        if not len(hashes):
            return
        bits = max(int(groups[-1]).bit_length(), 1)
        keys = np.sort(groups.astype(np.uint64) << np.uint64(64 - bits) | hashes >> np.uint64(bits))
        new = np.concatenate([[True], keys[1:] != keys[:-1]])
        distinct = np.bincount((keys[new] >> np.uint64(64 - bits)).astype(np.int64))
        totals = np.bincount(groups)
        kept = totals >= least
        self._sums[at] += float((1 - distinct[kept] / totals[kept]).sum())
        self._counts[at] += int(kept.sum())


def _numbered(values: Integers) -> Integers:
    """Return the rank of each value among the distinct values, from 0; the values are sorted."""
    return np.cumsum(np.diff(values, prepend=values[:1]) != 0)
