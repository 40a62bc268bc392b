"""Distinct n-grams of a corpus, and of random samples of it of any size."""

from pathlib import Path

import numpy as np

from cdgen.evaluation.corpus_stats.sorted_parts import SortedParts
from cdgen.evaluation.corpus_stats.words import Block, Integers, Words

SIZES = (1, 2, 3, 4)
STRETCH = 100  # number of words in a stretch; samples consist of stretches of documents
_BUCKETS = 1 << 16
_LOW = np.uint64(16)  # number of low bits of a key that hold the bucket


class DistinctGrams:
    """Counts the distinct n-grams of a corpus, for n = 1 to 4.

    Every stretch of 100 words of a document belongs to one of 65,536 buckets, which a hash decides. The stretches of
    the first b buckets are a random sample of the corpus. A key on the disk is the hash of an n-gram, 48 bits, above
    the bucket of its last word, 16 bits, so the first of the sorted keys with the same hash gives the smallest sample
    that has the n-gram. With N distinct n-grams, the expected share that is lost to equal hashes is N / 2^49.

    Args:
        folder: folder for temporary files: up to 8 bytes per word and n.
        seed: random seed of the assignment of stretches to buckets.
    """

    def __init__(self, folder: Path, seed: int = 0) -> None:
        self._seed = seed
        self._parts = {size: SortedParts(folder / f"{size}-grams") for size in SIZES}
        self._totals = np.zeros((len(SIZES), _BUCKETS), np.int64)  # n-grams in each bucket; row 0: words

    def add(self, block: Block) -> None:
        """Count the n-grams of a block.

        Raises:
            CorpusError: the disk is full.
        """
        stretches = (block.documents << 32) + block.places // STRETCH
        buckets = mixed(stretches, self._seed) >> np.uint64(48)  # [W]
        for size, hashes, ends in block.grams(*SIZES):
            bucket = buckets[ends]
            self._totals[size - 1] += np.bincount(bucket.astype(np.int64), minlength=_BUCKETS)
            keys = np.sort(hashes >> _LOW << _LOW | bucket)
            self._parts[size].add(keys[_is_first(keys)])

    def curve(self) -> "Curve":
        """Return the numbers of distinct n-grams, and delete the temporary files."""
        distinct = np.zeros((len(SIZES), _BUCKETS), np.int64)
        for row, parts in enumerate(self._parts.values()):
            for limit in parts.limits():
                keys = parts.keys_below(limit)
                buckets = (keys[_is_first(keys)] & np.uint64(_BUCKETS - 1)).astype(np.int64)
                distinct[row] += np.bincount(buckets, minlength=_BUCKETS)
            parts.close()
        return Curve(self._totals.cumsum(1), distinct.cumsum(1))


class Curve:
    """Numbers of n-grams in samples of growing size.

    Args:
        totals: int64 [n, buckets], number of n-grams in the first 1, 2, ... buckets.
        distinct: int64 [n, buckets], number of distinct n-grams in them.
    """

    def __init__(self, totals: Integers, distinct: Integers) -> None:
        self._totals, self._distinct = totals, distinct

    @property
    def words(self) -> int:
        """Number of words in the corpus."""
        return int(self._totals[0, -1])

    def shares(self, words: int | None = None) -> dict[int, float | None]:
        """Return distinct / total n-grams for n = 1 to 4; None for an n without n-grams.

        Args:
            words: size of the sample, at most that of the corpus; None for the whole corpus. Counts are interpolated
                between the two nearest samples of whole stretches.
        """
        found: dict[int, float | None] = {}
        for row, size in enumerate(SIZES):
            distinct, total = (self._at(counts[row], words) for counts in (self._distinct, self._totals))
            found[size] = distinct / total if total else None
        return found

    def _at(self, counts: Integers, words: int | None) -> float:
        if words is None:
            return int(counts[-1])
        zero = np.zeros(1)
        return float(np.interp(words, np.concatenate([zero, self._totals[0]]), np.concatenate([zero, counts])))


def diversity(shares: dict[int, float | None]) -> float | None:
    """Return the n-gram diversity of Ulm et al. (arXiv 2510.08245): the product of distinct / total for n = 2, 3, 4."""
    found = [shares[size] for size in (2, 3, 4)]
    return float(np.prod([share for share in found if share is not None])) if None not in found else None


def mixed(values: np.ndarray, seed: int) -> Words:
    """Return 64-bit hashes of integers (the output function of SplitMix64; Steele, Lea and Flood 2014)."""
    z = values.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)
    z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return z ^ z >> np.uint64(31)


def _is_first(keys: Words) -> np.ndarray:
    """Return, for sorted keys, whether each is the first one with its hash."""
    hashes = keys >> _LOW
    return np.concatenate([np.ones(min(len(keys), 1), bool), hashes[1:] != hashes[:-1]])
