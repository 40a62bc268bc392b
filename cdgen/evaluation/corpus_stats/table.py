"""The table of statistics of corpora: one column per corpus, one row per figure."""

import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from cdgen.errors import escaped

if TYPE_CHECKING:
    from cdgen.evaluation.corpus_stats.corpus_stats import CorpusStats, Diversity

Row: TypeAlias = "tuple[str, Callable[[CorpusStats], str]]"
_ABSENT = "-"
_WIDTH = 105  # columns of the lines below the table


def lines(found: "Sequence[CorpusStats]", against: str | None = None) -> Iterator[str]:
    """Iterate over the lines of the table and of the notes below it, for a terminal.

    Args:
        found: statistics of corpora that were measured together.
        against: name of the training text, if any.
    """
    table = cells(found, against)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for title, *values in table:
        yield "  ".join([title.ljust(widths[0]), *(v.rjust(w) for v, w in zip(values, widths[1:], strict=True))])
    yield ""
    for note in notes(found, against):
        yield from textwrap.wrap(note, _WIDTH, break_long_words=False, break_on_hyphens=False)


def cells(found: "Sequence[CorpusStats]", against: str | None = None) -> list[list[str]]:
    """Return the rows of the table, the names of the corpora first; the first cell of each row is its title.

    See :func:`lines` for arguments.
    """
    rows = [[title, *(value(each) for each in found)] for title, value in _rows(found, against)]
    return [["", *_names([each.name for each in found])], *rows]


def notes(found: "Sequence[CorpusStats]", against: str | None = None) -> Iterator[str]:
    """Iterate over the sentences below the table, which say how figures are defined and what was scored.

    See :func:`lines` for arguments.
    """
    yield (
        "n-gram diversity: product of distinct / total n-grams for n = 2, 3, 4. It falls as a corpus grows: only "
        "compare figures for the same number of words."
    )
    if against is not None:
        yield f"copied: share of the n-grams that occur in {escaped(against)}; - for that text itself."
    for one in found:
        if one.contrast is not None:
            yield (
                f"scored in {escaped(one.name)}: {one.contrast.documents:,} documents, their first 512 tokens, "
                f"{one.contrast.tokens:,} tokens"
            )


def _rows(found: "Sequence[CorpusStats]", against: str | None) -> "Iterator[Row]":
    yield "documents", lambda one: f"{one.documents:,}"
    yield "words", lambda one: f"{one.words:,}"
    yield "megabytes (UTF-8)", lambda one: f"{one.bytes / 1e6:,.2f}"
    yield "words per document: mean", lambda one: f"{one.mean_length:,.1f}"
    yield (
        "  5 / 25 / 50 / 75 / 95 %",
        lambda one: " / ".join(f"{length:,}" for length in one.length_quantiles.values()),
    )
    if any(one.end_of_text for one in found):
        yield "texts that reach the end of text", _ended
    yield from _diversity_rows("whole corpus", lambda one: one.whole)
    if len({one.words for one in found}) > 1:
        yield from _diversity_rows(f"{found[0].equal_size.words:,} words of each", lambda one: one.equal_size)
    yield "repeated 4-grams in a document", lambda one: _percent(one.repetition)
    yield "  in windows of 128 words", lambda one: _percent(one.window_repetition)
    if against is not None:
        yield "8-grams copied", lambda one: _percent(one.overlap.copied[8] if one.overlap else None)
        yield "13-grams copied", lambda one: _percent(one.overlap.copied[13] if one.overlap else None)
        yield "longest copied span, words", lambda one: f"{one.overlap.longest_span:,}" if one.overlap else _ABSENT
    if any(one.contrast for one in found):
        yield from _contrast_rows(found)


def _diversity_rows(title: str, of: "Callable[[CorpusStats], Diversity]") -> "Iterator[Row]":
    yield f"n-gram diversity, {title}", lambda one: _number(of(one).diversity)
    yield (
        "  distinct / total, n = 1 to 4",
        lambda one: " / ".join(_number(share, 3) for share in of(one).distinct.values()),
    )


def _contrast_rows(found: "Sequence[CorpusStats]") -> "Iterator[Row]":
    scored = [one.contrast for one in found if one.contrast is not None]
    yield "perplexity under GOOD", _contrast("good_perplexity", 2)
    if any(each.bad_perplexity is not None for each in scored):
        yield "perplexity under BAD", _contrast("bad_perplexity", 2)
        yield "contrast, log p_GOOD - log p_BAD, nats", _contrast("mean_contrast", 3)
    yield "entropy of GOOD, nats", _contrast("good_entropy", 3)
    yield "candidates: mean", _contrast("mean_candidates", 2)
    low = 0
    for high in max((each.candidates for each in scored), key=len):
        yield (f"  {high}" if high - low < 2 else f"  {low + 1} to {high}"), _candidates(high)
        low = high


def _contrast(name: str, digits: int) -> "Callable[[CorpusStats], str]":
    return lambda one: _number(getattr(one.contrast, name, None), digits)


def _candidates(high: int) -> "Callable[[CorpusStats], str]":
    return lambda one: _percent(one.contrast.candidates.get(high, 0.0) if one.contrast else None)


def _ended(one: "CorpusStats") -> str:
    return _percent(one.end_of_text.ended / one.end_of_text.texts) if one.end_of_text else _ABSENT


def _names(names: list[str]) -> list[str]:
    """Return column titles: the last part of each name if these parts differ, else the whole names."""
    short = [Path(name).name or name for name in names]
    return [escaped(name) for name in (short if len({*short}) == len({*names}) else names)]


def _percent(share: float | None) -> str:
    return _ABSENT if share is None else f"{100 * share:.2f} %"


def _number(value: float | None, digits: int = 4) -> str:
    return _ABSENT if value is None else f"{value:,.{digits}f}"
