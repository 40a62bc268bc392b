"""Plots of outcomes, training runs and ablations."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from markupsafe import Markup

from cdgen.report.content import Ablation, Level, TrainingRun
from cdgen.report.html.drawing import FONT, NARROW, SMALL, WIDE, Look, color, figure, shortened, svg
from cdgen.wording import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from cdgen.evaluation.comparison.data import Comparison, Effect

_ROW = 26  # height of a row of a forest plot, in CSS pixels
_NAME = 26  # length of the longest name in a forest plot


class _Row(NamedTuple):
    """A row of a forest plot.

    Attributes:
        label: what the row shows.
        effect: a change and its interval; None for a heading, or if there is no such value.
        method: the method; "" for a heading.
        strong: whether the row is emphasised.
    """

    label: str
    effect: "Effect | None" = None
    method: str = ""
    strong: bool = False


def forest(comparison: "Comparison", looks: Mapping[str, Look], name: str, narrow: bool = False) -> Markup | None:
    """Return the relative changes per task and method, with their intervals; None if there are none.

    Args:
        comparison: the comparison.
        looks: how each method is drawn.
        name: prefix of the ids in the plot.
        narrow: whether it is for a phone.
    """
    rows = list(_forest_rows(comparison))
    shown = [row.effect for row in rows if row.effect is not None]
    if not shown:
        return None
    width, height = NARROW if narrow else WIDE, _ROW * len(rows) + 70
    drawn, (axes,) = figure(width, height)
    # The columns: names, plot, and, if there is room, figures.
    left, right = (118, 326) if narrow else (_names_width(comparison), 512)
    drawn.set_layout_engine("none")
    axes.set_position((left / width, 46 / height, (right - left) / width, 1 - 70 / height))
    axes.set(yticks=[], ylim=(-0.5, len(rows) - 0.5))
    axes.spines["bottom"].set_visible(False)
    _percent_axis(axes, "x", [limit for effect in shown for limit in (*effect.interval, effect.value, 0)])
    axes.grid(visible=False)
    for place, row in zip(range(len(rows) - 1, -1, -1), rows, strict=True):
        _forest_row(axes, place, row, looks, -left, None if narrow else right - left + 16)
    axes.set_xlabel(f"relative change from {shortened(comparison.baseline)}", parse_math=False)
    # The zero line is the baseline.
    axes.annotate(
        shortened(comparison.baseline), (0, 1), (0, 4), xycoords=("data", "axes fraction"), textcoords="offset points",
        ha="center", va="bottom", fontsize=FONT, color=color("muted"), parse_math=False,
    )  # fmt: skip
    title = f"Relative change from {comparison.baseline} per task and method"
    return svg(drawn, name, title, " ".join(_effect_words(row) for row in rows))


def _names_width(comparison: "Comparison") -> int:
    longest = max(len(shortened(one.method, _NAME)) for one in comparison.methods[1:])
    return max(130, 20 + 7 * longest)


def _forest_rows(comparison: "Comparison") -> Iterator[_Row]:
    methods = comparison.methods[1:]
    if any(one.mean_relative_change for one in methods):
        count = sum(task.in_mean for task in comparison.tasks)
        yield _Row(f"mean over {counted(count, 'task')}: right is better", strong=True)
        for one in methods:
            yield _Row(one.method, one.mean_relative_change, one.method, strong=True)
    for task in comparison.tasks:
        better = "right is better" if task.higher_is_better else "lower values, on the left, are better"
        yield _Row(f"{shortened(task.name)}: {better}")
        for one in methods:
            yield _Row(one.method, comparison.result(one.method, task.name).relative_change, one.method)


def _forest_row(
    axes: "Axes", place: int, row: _Row, looks: Mapping[str, Look], left: float, figures: float | None
) -> None:
    """Draw a row.

    Args:
        axes: the axes.
        place: the row's y coordinate.
        row: the row.
        looks: how each method is drawn.
        left: where its name begins, in pixels from the left end of the axes.
        figures: where its figures begin, likewise; None if there is no room for them.
    """

    def write(text: str, offset: float, name: str) -> None:
        axes.annotate(
            text, (0, place), (offset, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
            fontsize=FONT, weight="bold" if row.strong else "normal", color=color(name), va="center", parse_math=False,
        )  # fmt: skip

    if not row.method:
        write(row.label, left, "muted")
        return
    for tick in axes.get_xticks():
        if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]:
            shade = color("line" if tick else "muted")
            axes.plot((tick, tick), (place - 0.5, place + 0.5), color=shade, linewidth=1, zorder=0)
    write(shortened(row.label, 14 if figures is None else _NAME), left + 12, "fg")
    if row.effect is not None:
        look = looks[row.method]
        axes.plot(row.effect.interval, (place, place), color=look.color, linewidth=3.5 if row.strong else 1.75)
        axes.plot(row.effect.value, place, look.marker, color=look.color, markersize=10 if row.strong else 7)
    if row.effect is None:
        write("not defined", 4, "muted")
    elif figures is not None:
        write(_effect_figures(row.effect), figures, "fg")


def _effect_figures(effect: "Effect") -> str:
    low, high = effect.interval
    return f"{_percent(effect.value)} ({_percent(low)} to {_percent(high)})"


def _effect_words(row: _Row) -> str:
    """Return a row of a forest plot in words."""
    if not row.method:
        return f"{row.label}."
    return f"{row.label}: {'not defined' if row.effect is None else _effect_figures(row.effect)};"


def _percent(share: float) -> str:
    return f"{share * 100:+.1f} %"


def _tick(share: float) -> str:
    percent = round(share * 100, 6)
    return f"{percent:+g} %" if percent else "0 %"


def _percent_axis(axes: "Axes", which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Fit an axis of shares to values, one of which is 0, and label it in percent."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite), max(finite)
    room = 0.06 * (high - low) or 0.01
    axes.set(**{f"{which}lim": (low - room, high + room)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(4 if which == "x" else 5))
    axis.set_major_formatter(FuncFormatter(lambda share, _: _tick(share)))
    axes.grid(visible=False)
    axes.grid(axis=which, color=color("line"), linewidth=1)


def losses(runs: Sequence[TrainingRun], look: Look, limits: tuple[float, float] | None, name: str) -> Markup | None:
    """Return the loss curves of training runs that differ in their seed only; None if there are no losses.

    Args:
        runs: the training runs.
        look: how they are drawn.
        limits: range of the losses, which is the same for all plots side by side.
        name: prefix of the ids in the plot.
    """
    if limits is None or not any(run.train or run.test for run in runs):
        return None
    from matplotlib.ticker import MaxNLocator, StrMethodFormatter

    drawn, (axes,) = figure(SMALL, 230)
    for run in runs:
        axes.plot([one.step for one in run.train], [one.loss for one in run.train], color=look.color, lw=1, alpha=0.4)
        axes.plot(
            [one.step for one in run.test], [one.loss for one in run.test], color=look.color, linewidth=1.75,
            marker=look.marker, markersize=6,
        )  # fmt: skip
    marked: dict[tuple[int, str], list[TrainingRun]] = {}
    for run in runs:
        for use in _uses(run).items():
            marked.setdefault(use, []).append(run)
    for (step, words), used in marked.items():
        _mark(axes, used, step, words)
    axes.set_ylim(*limits)
    axes.set_xlim(left=0)
    bins = 5 if max(run.steps for run in runs) < 10_000 else 3
    axes.xaxis.set_major_locator(MaxNLocator(bins, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats per token")
    return svg(drawn, name, f"Loss of {', '.join(run.name for run in runs)}", " ".join(map(_loss_words, runs)))


def loss_limits(runs: Sequence[TrainingRun]) -> tuple[float, float] | None:
    """Return the range of losses for plots side by side; None without losses."""
    values = [one.loss for run in runs for one in (*run.train, *run.test) if math.isfinite(one.loss)]
    if not values:
        return None
    low, high = min(values), max(values)
    room = 0.08 * (high - low) or 0.5
    return low - room, high + room


def _uses(run: TrainingRun) -> dict[int, str]:
    """Return the steps whose checkpoints are GOOD or BAD, and which of them."""
    found: dict[int, list[str]] = {}
    for role in run.roles:
        if role.kind and role.step is not None and role.kind not in found.setdefault(role.step, []):
            found[role.step].append(role.kind)
    return {step: ", ".join(kinds) for step, kinds in found.items()}


def _mark(axes: "Axes", runs: Sequence[TrainingRun], step: int, words: str) -> None:
    """Draw a circle around the checkpoint of each run, and the words once, above all of them."""
    losses_at: list[float] = []
    for run in runs:
        losses_at += [one.loss for one in (*run.test, *run.train) if one.step == step][:1]
    if not losses_at:
        return
    axes.plot(
        [step] * len(losses_at), losses_at, "o", markersize=14, fillstyle="none", color=color("fg"),
        markeredgewidth=1.5,
    )  # fmt: skip
    axes.annotate(
        words, (step, max(losses_at)), (0, 13), textcoords="offset points", fontsize=FONT, weight="bold",
        ha="right" if step > 0.8 * max(run.steps for run in runs) else "center", color=color("fg"),
    )  # fmt: skip


def _loss_words(run: TrainingRun) -> str:
    marks = "".join(f" The checkpoint of step {step} is {words}." for step, words in _uses(run).items())
    if not run.test:
        return f"{run.name}: training loss up to step {run.step}.{marks}"
    first, last = run.test[0], run.test[-1]
    return f"{run.name}: test loss {first.loss:.2f} at step {first.step}, {last.loss:.2f} at step {last.step}.{marks}"


def ablation(one: Ablation, looks: Mapping[str, Look], baseline: str, name: str) -> Markup | None:
    """Return the mean relative change by the levels of a factor; None if fewer than two levels have one.

    Args:
        one: the ablation.
        looks: how each method is drawn.
        baseline: label of the baseline, whose change is 0.
        name: prefix of the ids in the plot.
    """
    levels = [level for level in one.levels if level.effect is not None or level.method == baseline]
    if len(levels) < 2:
        return None
    across = max(len(shortened(level.value)) for level in levels) > 5  # long names are easier to read as rows
    drawn, (axes,) = figure(SMALL, 60 + _ROW * len(levels) if across else 230)
    places, names = range(len(levels)), [shortened(level.value, 18) for level in levels]
    shown = [_draw_level(axes, place, level, looks, across) for place, level in enumerate(levels)]
    _percent_axis(axes, "x" if across else "y", [0.0, *(value for values in shown for value in values)])
    words = f"change from {shortened(baseline, 14)}"
    if across:
        axes.axvline(0, color=color("muted"), linewidth=1, zorder=1)
        axes.set_yticks(places, names)
        axes.set_ylim(len(levels) - 0.4, -0.6)
        axes.set_xlabel(words, parse_math=False)
    else:
        axes.axhline(0, color=color("muted"), linewidth=1, zorder=1)
        axes.plot(places, [values[0] for values in shown], color=color("muted"), linewidth=1, zorder=1)
        axes.set_xticks(places, names)
        axes.set_xlim(-0.5, len(levels) - 0.5)
        axes.set_xlabel(shortened(one.factor), parse_math=False)
        axes.set_ylabel(words, parse_math=False)
    for label in axes.get_yticklabels() if across else axes.get_xticklabels():
        label.set(parse_math=False, color=color("fg"))
    return svg(drawn, name, f"Mean relative change by {one.factor}", " ".join(_level_words(level) for level in levels))


def _draw_level(axes: "Axes", place: int, level: Level, looks: Mapping[str, Look], across: bool) -> tuple[float, ...]:
    """Draw a level as a row or, unless `across`, as a column; return its change and the ends of its interval."""
    look = looks[level.method]
    value, interval = (0.0, (0.0, 0.0)) if level.effect is None else (level.effect.value, level.effect.interval)
    for along, values, marker in (((place, place), interval, ""), ((place,), (value,), look.marker)):
        ends = (values, along) if across else (along, values)
        axes.plot(*ends, marker=marker, color=look.color, linewidth=2, markersize=8)
    return value, *interval


def _level_words(level: Level) -> str:
    return f"{level.value}: {'the baseline' if level.effect is None else _effect_figures(level.effect)};"
