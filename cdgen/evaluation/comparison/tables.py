"""Tables and sentences from a comparison, as plain text, Markdown and LaTeX."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from rich.cells import cell_len

from cdgen.errors import escaped
from cdgen.evaluation.comparison.data import Comparison, Effect, Interval, MethodSummary, TaskResult, TaskSummary
from cdgen.wording import counted

_WIDTH = 32  # longest label that tables show in full, except in Markdown, whose columns need no alignment
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_", "%": r"\%",
        "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
        "|": r"\textbar{}",
    }
)  # fmt: skip
_MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>|~#$"})


class Table(NamedTuple):
    """A table. The first column has labels of methods, the others numbers.

    Attributes:
        title: what the table shows.
        header: names of the columns.
        sections: heading of each section, which may be empty, and its rows.
    """

    title: str
    header: list[str]
    sections: list[tuple[str, list[list[str]]]]


def tables(comparison: Comparison) -> list[Table]:
    """Return the table of mean relative changes, if there are any, and the table of the values per task."""
    interval = f"{comparison.confidence * 100:g} % interval"
    found = []
    rows = [_summary_row(comparison, method) for method in comparison.methods if method.mean_relative_change]
    if rows:
        tasks = counted(sum(task.in_mean for task in comparison.tasks), "task")
        title = f"Mean relative change from {comparison.baseline} over {tasks}"
        header = ["method", "runs", "better on", "change", interval, "p", "p (Holm)", "detectable"]
        found.append(Table(title, header, [("", rows)]))
    sections = []
    for task in comparison.tasks:
        results = [comparison.result(method.method, task.name) for method in comparison.methods]
        sections.append((_task_heading(task), [_task_row(result) for result in results]))
    header = ["method", "runs", "value", interval, "change", interval, "p (Holm)"]
    return [*found, Table(f"Values and relative changes from {comparison.baseline}", header, sections)]


def as_text(comparison: Comparison) -> str:
    """Return the tables, sentences and warnings as lines of plain text."""
    lines = []
    for table in tables(comparison):
        lines += [*_text_lines(table), ""]
    lines += sentences(comparison)
    lines += [f"note: {warning}" for warning in comparison.warnings]
    return "\n".join(escaped(line) for line in lines) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """Return the sentences, tables and warnings as Markdown."""
    lines = [f"- {_translated(sentence, _MARKDOWN)}" for sentence in sentences(comparison)]
    for table in tables(comparison):
        rule = ["---", *["---:"] * (len(table.header) - 1)]
        lines += ["", f"**{_translated(table.title, _MARKDOWN)}**", "", _markdown_row(table.header), _joined(rule)]
        for heading, rows in table.sections:
            blank = [""] * (len(rule) - 1)
            lines += [_joined([f"*{_translated(heading, _MARKDOWN)}*", *blank])] if heading else []
            lines += [_markdown_row(row) for row in rows]
    lines += ["", f"{_translated(method_text(comparison), _MARKDOWN)}"]
    lines += [f"\nNote: {_translated(warning, _MARKDOWN)}." for warning in comparison.warnings]
    return "\n".join(lines) + "\n"


def as_latex(comparison: Comparison) -> str:
    """Return the tables as LaTeX with the package booktabs; sentences and warnings become comments."""
    comments = [*sentences(comparison), *(f"Note: {warning}." for warning in comparison.warnings)]
    lines = ["% Needs \\usepackage{booktabs}.", *(f"% {escaped(comment)}" for comment in comments)]
    for table in tables(comparison):
        columns = len(table.header)
        caption = f"{table.title}. {method_text(comparison)}"
        lines += ["", "\\begin{table}", "\\centering", "\\small", f"\\caption{{{_translated(caption, _LATEX)}}}"]
        lines += [f"\\begin{{tabular}}{{l{'r' * (columns - 1)}}}", "\\toprule", _latex_row(table.header)]
        for heading, rows in table.sections:
            lines.append("\\midrule")
            if heading:
                text = _translated(_shortened(heading, 3 * _WIDTH), _LATEX)
                lines.append(f"\\multicolumn{{{columns}}}{{l}}{{\\emph{{{text}}}}} \\\\")
            lines += [_latex_row(row) for row in rows]
        lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
    return "\n".join(lines) + "\n"


def sentences(comparison: Comparison) -> list[str]:
    """Return what could be shown of each method other than the baseline, and what could not, in a few sentences."""
    others = comparison.methods[1:]
    return [f"{method.method}: {' '.join(_statements(comparison, method))}" for method in others]


def method_text(comparison: Comparison) -> str:
    """Return how the figures in the tables were computed."""
    return (
        f"The {comparison.checkpoint} checkpoint of each run and task; {comparison.confidence * 100:g} % intervals "
        f"from a paired bootstrap with {comparison.resamples:,} resamples; one-sided p-values for an improvement, with "
        "Holm's correction for the number of methods; detectable: the smallest improvement that would have been found "
        "with probability 0.8."
    )


def _statements(comparison: Comparison, method: MethodSummary) -> Iterator[str]:
    """Yield sentences about a method: the outcome, the mean relative change, and the tasks that it does not cover."""
    effect, baseline = method.mean_relative_change, comparison.baseline
    if effect is None:
        better = _better(comparison, method)
        yield f"better than {baseline} on {better}; no task qualifies for the mean relative change."
    elif effect.interval == (0, 0):
        yield f"no difference from {baseline}, whose scores are the same."
    elif verdict := comparison.verdict(effect):
        yield f"{verdict} than {baseline}."
        yield f"{_mean_change(comparison, effect)}."
    else:
        yield f"no improvement over {baseline} could be shown."
        yield (
            f"{_mean_change(comparison, effect)}; with {counted(method.runs, 'run')}, an improvement of "
            f"{_percent(effect.detectable, '')} would have been found with probability 0.8."
        )
    others = [
        _change(task, comparison.result(method.method, task.name)) for task in comparison.tasks if not task.in_mean
    ]
    if any(others):
        yield f"Not in the mean: {'; '.join(filter(None, others))}."


def _better(comparison: Comparison, method: MethodSummary) -> str:
    """Return on how many tasks a method is better than the baseline, such as "3 of 5 tasks"."""
    return f"{method.better} of {counted(len(comparison.tasks), 'task')}"


def _mean_change(comparison: Comparison, effect: Effect) -> str:
    covered = [task.name for task in comparison.tasks if task.in_mean]
    over = covered[0] if len(covered) == 1 else counted(len(covered), "task")
    return (
        f"Mean relative change over {over} {_percent(effect.value)} ({comparison.confidence * 100:g} % interval "
        f"{_range(effect.interval)}, p {_p(effect.p_corrected, '= ')} after Holm's correction)"
    )


def _change(task: TaskSummary, result: TaskResult) -> str:
    """Return the relative change on a task, such as "perplexity -2.1 %"; "" if there is none."""
    change, difference = result.relative_change, result.difference
    if change is None or difference is None or change.interval == (0, 0):
        return ""
    lower = "" if task.higher_is_better else "; lower is better"
    return (
        f"{task.name} {_percent(change.value)} ({_range(change.interval)}, p {_p(difference.p_corrected, '= ')}{lower})"
    )


def _summary_row(comparison: Comparison, method: MethodSummary) -> list[str]:
    effect = method.mean_relative_change
    assert effect is not None, "the caller leaves out methods without one"
    return [
        method.method,
        str(method.runs),
        _better(comparison, method),
        _percent(effect.value),
        _range(effect.interval),
        _p(effect.p),
        _p(effect.p_corrected),
        _percent(effect.detectable, ""),
    ]


def _task_heading(task: TaskSummary) -> str:
    lower = "" if task.higher_is_better else ", lower is better"
    return f"{task.name}: {task.metric}{lower}; {counted(task.items, 'item')}, convention {task.convention}"


def _task_row(result: TaskResult) -> list[str]:
    change: Effect | None = result.relative_change
    return [
        result.method,
        str(len(result.runs)),
        _value(result.estimate),
        " to ".join(map(_value, result.interval)),
        _percent(change.value) if change else "",
        _range(change.interval) if change else "",
        _p(result.difference.p_corrected) if result.difference else "",
    ]


def _value(value: float) -> str:
    """Return a value with four significant digits, zeros included."""
    return f"{value:#.4g}".rstrip(".")


def _percent(share: float, sign: str = "+") -> str:
    """Return a share in percent, such as "+4.9 %"."""
    return f"{share * 100:{sign}.1f} %"


def _range(interval: Interval) -> str:
    return " to ".join(_percent(limit) for limit in interval)


def _p(value: float, equals: str = "") -> str:
    """Return a p-value, preceded by `equals`, or by "< " if it is below 0.001."""
    return f"{equals}{value:.3f}" if value >= 0.001 else "< 0.001"


def _shortened(text: str, width: int = _WIDTH) -> str:
    """Cut the middle out of a text that is too long, since labels differ at their beginnings and ends."""
    text = escaped(text)
    return text if len(text) <= width else f"{text[: width // 2 - 1]}...{text[-(width // 2 - 2) :]}"


def _text_lines(table: Table) -> Iterable[str]:
    rows = [table.header, *(row for _, section in table.sections for row in section)]
    columns = [[_shortened(cell) for cell in column] for column in zip(*rows, strict=True)]
    widths = [max(map(cell_len, column)) for column in columns]
    yield table.title
    yield _aligned(table.header, widths)
    for heading, section in table.sections:
        if heading:
            yield heading
        for row in section:
            yield _aligned(row, widths)


def _aligned(row: list[str], widths: list[int]) -> str:
    """Return a row with its first cell aligned to the left and the others to the right."""
    label, *numbers = (_shortened(cell) for cell in row)
    cells = [label + " " * (widths[0] - cell_len(label))]
    cells += [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
    return ("  " + "  ".join(cells)).rstrip()


def _translated(text: str, characters: dict[int, str]) -> str:
    return escaped(text).translate(characters)


def _joined(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _markdown_row(row: Iterable[str]) -> str:
    return _joined(_translated(cell, _MARKDOWN) for cell in row)


def _latex_row(row: Iterable[str]) -> str:
    label, *numbers = (_translated(_shortened(cell), _LATEX) for cell in row)
    return " & ".join([label, *(re.sub(r"-(?=\d)", "$-$", number) for number in numbers)]) + " \\\\"
