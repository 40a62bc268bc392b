"""What is known of every document without its text: 30 bytes, from which splits, duplicates and budgets follow.

All of it is a function of the text alone (the first 8 bytes of its hash decide the split, the other 8 the order in
which a budget is filled), so that equal texts meet in one split, whichever sources they stand in and in whatever order.
"""

from array import array
from hashlib import blake2b

import numpy as np

from cdgen.errors import InputError

TRAIN, TEST, SEEDS, LEFT_OUT = 0, 1, 2, 3
SPLITS = ("train", "test", "seeds")


class Index:
    """Grows by :meth:`add`, document after document; :meth:`decide` then says where each goes. `bytes`: of each."""

    def __init__(self, seed):
        self._key = blake2b(str(seed).encode(), digest_size=32).digest()
        self._hashes, self._words, self.bytes, self._source = bytearray(), array("I"), array("Q"), array("H")

    def __len__(self):
        return len(self._words)

    def add(self, source, text):
        """Add a document, stripped, of source number `source`."""
        data = text.encode()
        self._hashes += blake2b(data, digest_size=16, key=self._key).digest()
        self._words.append(len(text.split()))
        self.bytes.append(len(data))
        self._source.append(source)

    def decide(self, sources, test, seeds):
        """Where every document goes, and the counts.

        Args:
            sources: list of :class:`~cdgen.prepare.sources.Source`, in the order of their numbers.
            test, seeds: shares of the documents, each a probability of a document's hash.
        Returns:
            (uint8 [documents] of TRAIN, TEST, SEEDS, LEFT_OUT;
            counts: list, for each source, of {"duplicates", "over_budget", split: {"documents", "words", "bytes"}})
        """
        split_hash, order_hash = np.frombuffer(self._hashes, dtype="<u8").reshape(-1, 2).T
        source = np.frombuffer(self._source, dtype=np.uint16)
        words, size = (np.frombuffer(column, dtype=column.typecode) for column in (self._words, self.bytes))
        decision = np.full(len(self), TRAIN, dtype=np.uint8)
        decision[split_hash < _scaled(test)] = TEST
        if seeds:  # from the other end, so that one share moves and the other split does not
            decision[split_hash >= np.uint64(2**64 - 1) - _scaled(seeds)] = SEEDS

        order = np.lexsort((split_hash, order_hash))  # stable: the first of equal texts comes first
        same = (order_hash[order[1:]] == order_hash[order[:-1]]) & (split_hash[order[1:]] == split_hash[order[:-1]])
        text = np.empty(len(self), dtype=np.int64)  # the same number for equal texts
        text[order] = np.concatenate([[0], np.cumsum(~same)])[: len(self)]

        # within a source, then its budget, then among sources: so no source takes from another's budget
        repeated = np.zeros(len(self), dtype=bool)
        of_source = [order[source[order] == number] for number in range(len(sources))]
        for chosen in of_source:
            repeated[chosen[1:][text[chosen[1:]] == text[chosen[:-1]]]] = True
        over = np.zeros(len(self), dtype=bool)
        own = [int(words[chosen[~repeated[chosen]]].sum(dtype=np.int64)) for chosen in of_source]
        for chosen, budget in zip(of_source, _budgets(sources, own), strict=True):
            if budget is not None:
                unique = chosen[~repeated[chosen]]
                over[unique[np.cumsum(words[unique], dtype=np.int64) > budget]] = True
        left = order[~(repeated | over)[order]]
        repeated[left[1:][text[left[1:]] == text[left[:-1]]]] = True
        kept = ~(repeated | over)
        decision[~kept] = LEFT_OUT

        counts = []
        for number in range(len(sources)):
            mine = source == number
            about = {"duplicates": int((repeated & mine).sum()), "over_budget": int((over & mine).sum())}
            for code, name in enumerate(SPLITS):
                chosen = mine & (decision == code)
                about[name] = {
                    "documents": int(chosen.sum()),
                    "words": int(words[chosen].sum(dtype=np.int64)),
                    "bytes": int(size[chosen].sum(dtype=np.int64)),
                }
            counts.append(about)
        return decision, counts


def _scaled(share):
    return np.uint64(min(int(share * 2**64), 2**64 - 1))


def _budgets(sources, words):
    """Words that each source may give, None for all of them."""
    scarcest = min(
        (have / source.weight for source, have in zip(sources, words, strict=True) if source.weight is not None),
        default=0,
    )
    return [source.words if source.weight is None else round(source.weight * scarcest) for source in sources]


def check_shares(test, seeds):
    """Raise InputError where the splits' shares cannot be."""
    for name, share in (("test", test), ("seeds", seeds)):
        if not 0 <= share < 1:
            raise InputError(f"{name} = {share}: must be 0 or more and below 1")
    if test + seeds >= 1:
        raise InputError(f"test = {test}, seeds = {seeds}: nothing is left to train on")
