"""Stream the words of a corpus as 64-bit hashes, in blocks of bounded size.

A word is a maximal string without whitespace, as `str.split` defines it. Its hash is BLAKE2b (RFC 7693) of its UTF-8
bytes; the hash of an n-gram is a polynomial in the hashes of its words.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import count
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdgen.corpus.find import Corpus
from cdgen.corpus.records import format_of, records
from cdgen.corpus.text_files import pieces

LONGEST_GRAM = 13  # words of the longest n-grams that a block can give
_BLOCK = 2_000_000  # maximum number of characters in a block
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # must be odd, so that no bit of a word is lost modulo 2^64

Words: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint64]]"
Integers: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"


class Part(NamedTuple):
    """A document, or a part of a long one: the index of the document in the corpus, and the text."""

    document: int
    text: str


@dataclass(frozen=True)
class Block:
    """Successive words of a corpus.

    A document is in one block as a whole, unless it has more than two million characters.

    Attributes:
        parts: the texts.
        counts: int64 [parts], number of words of each part.
        words: uint64 [W], hashes of the last few words of the preceding block, then of all words of this block.
        documents: int64 [W], index of each word's document in the corpus.
        places: int64 [W], index of each word in its document.
        carried: number of words that are from the preceding block.
    """

    parts: list[Part]
    counts: Integers
    words: Words
    documents: Integers
    places: Integers
    carried: int

    def grams(self, *sizes: int) -> Iterator[tuple[int, Words, Integers]]:
        """Iterate over n-grams of the given sizes, which must ascend.

        An n-gram belongs to the block in which it ends, and does not extend over two documents.

        Args:
            sizes: numbers of words, at most :data:`LONGEST_GRAM`.
        Yields:
            The size, the hashes of the n-grams [K], and the index in `words` of the last word of each [K].
        """
        hashes = self.words
        for size in range(1, max(sizes) + 1):
            if size > 1:
                hashes = hashes[:-1] * _FACTOR + self.words[size - 1 :]
            if size in sizes:
                starts = np.flatnonzero(self.documents[: len(hashes)] == self.documents[size - 1 :])
                starts = starts[np.searchsorted(starts, self.carried - size + 1) :]
                yield size, hashes[starts], starts + size - 1


def parts(corpus: Corpus) -> Iterator[Part]:
    """Iterate over the documents of a corpus; long ones are cut into parts at whitespace.

    Raises:
        InputError: a file cannot be read.
    """
    numbers = count()
    for path in corpus.files:
        if format_of(path) == "txt":  # one document, which may be larger than memory
            document = next(numbers)
            yield from (Part(document, text.replace("\r\n", "\n")) for text in _cut(pieces(path)))
        else:
            for record in records(path, remedy="prepare it first, with field=NAME"):
                if record.text.strip():  # training skips blank documents, too
                    document = next(numbers)
                    yield from (Part(document, text) for text in _cut([record.text]))


def _cut(texts: Iterable[str]) -> Iterator[str]:
    """Iterate over parts of a text that comes in pieces. A word that is longer than a block is cut too."""
    rest = ""
    for text in texts:
        rest += text
        while len(rest) > _BLOCK:
            at = max(rest.rfind(space, 0, _BLOCK) for space in " \n") + 1 or _BLOCK
            yield rest[:at]
            rest = rest[at:]
    yield rest


def blocks(found: Iterable[Part]) -> Iterator[Block]:
    """Iterate over the blocks of a corpus."""
    last: Block | None = None
    for group in _groups(found):
        last = _block(group, last)
        yield last


def _groups(found: Iterable[Part]) -> Iterator[list[Part]]:
    """Collect parts until they fill a block."""
    group: list[Part] = []
    size = 0
    for part in found:
        if group and size + len(part.text) > _BLOCK:
            yield group
            group, size = [], 0
        group.append(part)
        size += len(part.text) + 1  # empty texts need memory too
    if group:
        yield group


def _block(found: list[Part], last: Block | None) -> Block:
    # Arrow 26 may miss whitespace at the end of an array's last text, so another text follows.
    split = pc.utf8_split_whitespace(pa.array([*(part.text for part in found), "."], pa.string()))[:-1]
    coded = split.flatten().dictionary_encode()
    codes, spellings = coded.indices.to_numpy(), coded.dictionary.cast(pa.binary()).to_pylist()
    of_part = np.repeat(np.arange(len(found)), pc.list_value_length(split).to_numpy())
    if b"" in spellings:  # whitespace at the beginning or end of a text
        kept = codes != spellings.index(b"")
        codes, of_part = codes[kept], of_part[kept]
    digests = b"".join(blake2b(word, digest_size=8).digest() for word in spellings)
    words = np.frombuffer(digests, "<u8").astype(np.uint64)[codes]
    documents = np.array([part.document for part in found])[of_part]
    places = np.arange(len(words)) - np.searchsorted(documents, documents)
    counts = np.bincount(of_part, minlength=len(found))
    if last is None:
        return Block(found, counts, words, documents, places, 0)
    if len(last.words) and last.documents[-1] == found[0].document:
        places[documents == found[0].document] += last.places[-1] + 1
    carried = min(len(last.words), LONGEST_GRAM - 1)
    tail = slice(len(last.words) - carried, None)
    words, documents, places = (
        np.concatenate([before[tail], new])
        for before, new in ((last.words, words), (last.documents, documents), (last.places, places))
    )
    return Block(found, counts, words, documents, places, carried)
