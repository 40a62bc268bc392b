"""How sequences are laid out for the model: rows in which shared prefixes occur once, and batches of rows."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

_Item = TypeVar("_Item")


def default_batch_tokens(device: torch.device) -> int:
    """Return the number of tokens, padding included, that one forward pass reads by default."""
    return 1024 if device.type == "cpu" else 16384


@dataclass
class Row:
    """Sequences that are read together, as a tree: the tokens of a shared prefix occur once.

    Attributes:
        tokens: token ids; each comes after its predecessor in its sequences, though not always immediately.
        positions: position of each token in its sequences.
        paths: for each sequence its index, and the index in `tokens` of each of its tokens.
        is_tree: whether two sequences branch after a shared prefix. If not, each token continues all tokens before it.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    paths: list[tuple[int, list[int]]] = field(default_factory=list)
    is_tree: bool = False

    def __len__(self) -> int:
        return len(self.tokens)

    def add(self, index: int, sequence: Sequence[int], common: int) -> None:
        """Add a sequence that shares its first `common` tokens with the sequence that was added last."""
        before = self.paths[-1][1] if self.paths else []
        self.is_tree |= common < len(before)
        new = range(len(self.tokens), len(self.tokens) + len(sequence) - common)
        self.paths.append((index, [*before[:common], *new]))
        self.tokens += sequence[common:]
        self.positions += range(common, len(sequence))

    def visible(self) -> NDArray[np.bool_]:
        """Return whether each token may attend to each other token, [T, T]: itself and its predecessors."""
        found = np.zeros((len(self), len(self)), dtype=bool)
        done = 0
        for _, path in self.paths:
            new = [at for at in path if at >= done]
            found[np.ix_(new, path)] = np.tri(len(new), len(path), len(path) - len(new), dtype=bool)
            done += len(new)
        return found


def pack(sequences: Sequence[Sequence[int]], width: int, widest: int) -> list[Row]:
    """Lay out sequences in rows.

    The sequences are taken in lexicographic order, so that those with a long shared prefix are adjacent. A row takes
    sequences until it is full. Short rows repeat more prefixes; in long ones attention takes more time.

    Args:
        sequences: lists of token ids.
        width: maximum number of tokens in a row, or twice the length of its first sequence if that is more, so that
            even a long context is shared.
        widest: maximum number of tokens in a row with several sequences that differ.
    """
    rows: list[Row] = []
    previous: Sequence[int] = ()
    limit = 0
    for index in sorted(range(len(sequences)), key=lambda at: list(sequences[at])):
        own = sequences[index]
        common = _common(previous, own)
        if not rows or (common < len(own) and len(rows[-1]) + len(own) - common > limit):
            rows.append(Row())
            common, limit = 0, min(widest, max(width, 2 * len(own)))
        rows[-1].add(index, own, common)
        previous = own
    return rows


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """Return the length of the prefix that two sequences share."""
    differing = (at for at, (left, right) in enumerate(zip(one, other, strict=False)) if left != right)
    return next(differing, min(len(one), len(other)))


def cut(items: Sequence[_Item], length: Callable[[_Item], int], budget: int, padding: int) -> Iterator[Sequence[_Item]]:
    """Divide items, sorted by length in descending order, into batches that are padded to their longest.

    Args:
        items: what to divide.
        length: returns the number of tokens of an item.
        budget: maximum number of tokens in a batch, padding included, unless it has only one item.
        padding: maximum number of padding tokens in a batch.
    """
    start, padded = 0, 0
    for end in range(1, len(items)):
        width = length(items[start])
        padded += width - length(items[end])
        if padded > padding or (end + 1 - start) * width > budget:
            yield items[start:end]
            start, padded = end, 0
    if items:
        yield items[start:]
