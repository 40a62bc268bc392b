"""Plots of corpora side by side: a small one per property, a row or a line per corpus."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from markupsafe import Markup

from cdgen.report.html.drawing import FONT, SMALL, Look, color, figure, shortened, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from cdgen.evaluation.corpus_stats.corpus_stats import CorpusStats

_ROW = 34  # height of a corpus in a plot, in CSS pixels


class Measured(NamedTuple):
    """A corpus that was measured.

    Attributes:
        label: the name of the corpus.
        look: how it is drawn.
        stats: its statistics.
    """

    label: str
    look: Look
    stats: "CorpusStats"


class Panel(NamedTuple):
    """A plot of corpora.

    Attributes:
        title: what it shows.
        note: how to read it.
        plot: the plot.
    """

    title: str
    note: str
    plot: Markup


def panels(corpora: Sequence[Measured], name: str) -> list[Panel]:
    """Return the plots for which the corpora have values.

    Args:
        corpora: the corpora, in the order of the table.
        name: prefix of the ids in the plots.
    """
    kinds: dict[str, Callable[[Sequence[Measured], str], Panel | None]] = {
        "diversity": _diversity,
        "repetition": _repetition,
        "copied": _copied,
        "lengths": _lengths,
        "perplexity": _perplexity,
        "candidates": _candidates,
    }
    drawn = (draw(corpora, f"{name}-{kind}") for kind, draw in kinds.items())
    return [panel for panel in drawn if panel is not None]


def _diversity(corpora: Sequence[Measured], name: str) -> Panel | None:
    words = corpora[0].stats.equal_size.words
    size = f"in {words:,} words of each" if len(corpora) > 1 else f"in all {words:,} words"
    values = [one.stats.equal_size.diversity for one in corpora]
    note = "Distinct / total n-grams, multiplied for n = 2, 3 and 4. Higher is more varied."
    return _bars(corpora, name, f"n-gram diversity {size}", note, values, lambda value: f"{value:.4f}")


def _repetition(corpora: Sequence[Measured], name: str) -> Panel | None:
    values = [one.stats.repetition for one in corpora]
    note = "4-grams that occur earlier in the same document. Lower is less repetitive."
    return _bars(corpora, name, "Repeated 4-grams", note, values, _percent)


def _bars(
    corpora: Sequence[Measured],
    name: str,
    title: str,
    note: str,
    values: Sequence[float | None],
    words: Callable[[float], str],
) -> Panel | None:
    """Return a plot with one bar per corpus, or None without values."""
    if all(value is None for value in values):
        return None
    drawn, axes = _rows(corpora)
    for place, one, value in zip(_places(corpora), corpora, values, strict=True):
        if value is not None:
            axes.barh(place, value, height=0.5, color=one.look.color)
        _value(axes, place, value or 0, "–" if value is None else words(value))
    _from_zero(axes, [value for value in values if value is not None])
    told = [
        f"{one.label}: {'-' if value is None else words(value)};" for one, value in zip(corpora, values, strict=True)
    ]
    return Panel(title, note, svg(drawn, name, title, " ".join(told)))


def _copied(corpora: Sequence[Measured], name: str) -> Panel | None:
    shares = [None if one.stats.overlap is None else one.stats.overlap.copied for one in corpora]
    if all(share is None or share[8] is None for share in shares):
        return None
    title, told = "n-grams copied from the training text", []
    drawn, axes = _rows(corpora)
    for place, one, share in zip(_places(corpora), corpora, shares, strict=True):
        eight, thirteen = (None, None) if share is None else (share[8], share[13])
        axes.barh(place, eight or 0, height=0.5, color=one.look.color, alpha=0.35)
        axes.barh(place, thirteen or 0, height=0.5, color=one.look.color)
        words = " / ".join("–" if each is None else _percent(each) for each in (eight, thirteen))
        _value(axes, place, eight or 0, "the training text" if share is None else words)
        told.append(f"{one.label}: {words};")
    _from_zero(axes, [share[8] or 0 for share in shares if share is not None], room=0.9)
    note = "Light: 8-grams; solid: 13-grams."
    return Panel(title, note, svg(drawn, name, title, " ".join(told)))


def _lengths(corpora: Sequence[Measured], name: str) -> Panel:
    title, told = "Words per document", []
    drawn, axes = _rows(corpora)
    for place, one in zip(_places(corpora), corpora, strict=True):
        fifth, low, middle, high, most = one.stats.length_quantiles.values()
        axes.plot((fifth, most), (place, place), color=one.look.color, linewidth=1.5)
        axes.plot((low, high), (place, place), color=one.look.color, linewidth=8, alpha=0.4)
        axes.plot(middle, place, one.look.marker, color=one.look.color, markersize=8)
        told.append(f"{one.label}: median {middle:,}, half of the documents {low:,} to {high:,};")
    values = [length for one in corpora for length in one.stats.length_quantiles.values()]
    _scale(axes, [max(value, 1) for value in values])
    note = "Marker: median; band: middle half; line: middle 90\u00a0% of the documents."
    return Panel(title, note, svg(drawn, name, title, " ".join(told)))


def _perplexity(corpora: Sequence[Measured], name: str) -> Panel | None:
    scored = [one for one in corpora if one.stats.contrast is not None]
    if not scored:
        return None
    drawn, axes = _rows(corpora)
    told, values = [], []
    for place, one in zip(_places(corpora), corpora, strict=True):
        if (contrast := one.stats.contrast) is None:
            continue
        good, bad = contrast.good_perplexity, contrast.bad_perplexity
        told.append(f"{one.label}: {good:,.2f} under GOOD{'' if bad is None else f', {bad:,.2f} under BAD'};")
        values.append(good)
        if bad is not None:
            values.append(bad)
            axes.plot((good, bad), (place, place), color=one.look.color, linewidth=1.5, zorder=1)
            axes.plot(
                bad, place, one.look.marker, color=one.look.color, markersize=8, fillstyle="none", markeredgewidth=1.5
            )
        axes.plot(good, place, one.look.marker, color=one.look.color, markersize=8)
    _scale(axes, values)
    with_bad = any(one.stats.contrast and one.stats.contrast.bad_perplexity is not None for one in scored)
    title = "Perplexity under GOOD and BAD" if with_bad else "Perplexity under GOOD"
    note = "Filled: GOOD; hollow: BAD." if with_bad else "Lower: more predictable for GOOD."
    return Panel(title, note, svg(drawn, name, title, " ".join(told)))


def _candidates(corpora: Sequence[Measured], name: str) -> Panel | None:
    scored = [one for one in corpora if one.stats.contrast is not None]
    if not scored:
        return None
    contrasts = [one.stats.contrast for one in scored if one.stats.contrast is not None]
    histograms, alpha = [one.candidates for one in contrasts], contrasts[0].alpha
    bins = sorted({high for histogram in histograms for high in histogram})
    drawn, (axes,) = figure(SMALL, 215 + 18 * len(scored))
    for one, histogram in zip(scored, histograms, strict=True):
        shares = [100 * histogram.get(high, 0.0) for high in bins]
        axes.plot(
            range(len(bins)), shares, marker=one.look.marker, color=one.look.color, linewidth=1.75, markersize=6,
            label=shortened(one.label),
        )  # fmt: skip
    every = 1 if len(bins) <= 7 else 2
    axes.set_xticks(range(0, len(bins), every), [f"{high:,}" for high in bins[::every]])
    axes.set_xlabel("candidates")
    axes.set_ylim(bottom=0)
    axes.set_ylabel("share of positions, %")
    if len(corpora) > 1:
        legend = drawn.legend(loc="outside lower left", frameon=False, fontsize=FONT, labelcolor=color("fg"))
        for text in legend.get_texts():
            text.set_parse_math(False)
    told = [
        f"{one.label}: {contrast.mean_candidates:.2f} candidates on average;"
        for one, contrast in zip(scored, contrasts, strict=True)
    ]
    title = "Number of candidates"
    note = (
        f"Per position: tokens to which GOOD gives at least {alpha:g} times the probability of its best token. "
        "8 stands for 5 to 8."
    )
    return Panel(title, note, svg(drawn, name, title, " ".join(told)))


def _rows(corpora: Sequence[Measured]) -> "tuple[Figure, Axes]":
    """Return a figure with a row per corpus."""
    drawn, (axes,) = figure(SMALL, 44 + _ROW * len(corpora))
    axes.set_yticks(list(_places(corpora)), [shortened(one.label, 18) for one in corpora])
    for label in axes.get_yticklabels():
        label.set(color=color("fg"), parse_math=False)
    axes.set_ylim(-0.6, len(corpora) - 0.4)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color=color("line"), linewidth=1)
    return drawn, axes


def _places(corpora: Sequence[Measured]) -> range:
    """Return the rows of the corpora, the first one at the top."""
    return range(len(corpora) - 1, -1, -1)


def _value(axes: "Axes", place: int, value: float, words: str) -> None:
    """Write a value to the right of the end of its bar."""
    axes.annotate(
        words, (value, place), (6, 0), textcoords="offset points", fontsize=FONT, va="center", color=color("fg")
    )


def _from_zero(axes: "Axes", values: Sequence[float], room: float = 0.45) -> None:
    """Fit the axis of values to bars, with room for their values, which make tick labels superfluous."""
    axes.set_xlim(0, max(values, default=0) * (1 + room) or 1)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)


def _scale(axes: "Axes", values: Sequence[float]) -> None:
    """Choose a logarithmic axis for values of several orders of magnitude, and label it with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=1.0), max(finite, default=1.0)
    if high > 10 * low:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.3)
        steps = (1.0, 2.0, 5.0) if high < 25 * low else (1.0, 3.0) if high < 100 * low else (1.0,)
        axes.xaxis.set_major_locator(LogLocator(subs=steps, numticks=8))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xlim(0, high * 1.1)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
