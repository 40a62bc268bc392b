"""What the section "Read it" shows, as plain data: documents, side by side across corpora."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cdgen.viewer.explanation import Explanation


@dataclass(frozen=True)
class Column:
    """What the documents of one corpus have in common.

    Attributes:
        name: name of the corpus; "real" for the texts that seeds were cut from.
        method: decoding method; "" for text that was not generated.
        good, bad: names of the models that wrote it; "" if there is none.
        scored_with: names of the models that explain its documents, if they are others; "" if not.
    """

    name: str
    method: str
    good: str
    bad: str
    scored_with: str


@dataclass(frozen=True)
class Document:
    """A document to read.

    Attributes:
        column: index of its column.
        text: the text, at most 4,000 characters of it.
        words: number of words in the whole document.
        tokens: number of tokens in the whole document; None unless it was generated.
        finish_reason: why generation ended: "stop", "length" or "error"; "" unless it was generated.
        left_out: number of characters that `text` leaves out.
        explanation: its first tokens under GOOD and BAD; None without models.
        rest: the end of `text`, which follows the tokens of the explanation.
    """

    column: int
    text: str
    words: int
    tokens: int | None
    finish_reason: str
    left_out: int
    explanation: "Explanation | None"
    rest: str


@dataclass(frozen=True)
class Entry:
    """Documents that are shown side by side: the continuations of one seed, or a single document.

    Attributes:
        id: name of the seed or the document, unique in the report.
        group: title of the list that the entry belongs to.
        start: the first words of the seed or the document.
        documents: at most one per column, in the order of the columns.
    """

    id: str
    group: str
    start: str
    documents: tuple[Document, ...]


@dataclass(frozen=True)
class Documents:
    """Documents to read.

    Attributes:
        columns: the corpora.
        entries: the documents; entries of one group are adjacent.
        notes: what is missing, and why.
    """

    columns: tuple[Column, ...]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...]
