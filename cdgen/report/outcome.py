"""What evaluations found: a comparison that was written, one that is computed now, or the results alone."""

import inspect
import shlex
from collections.abc import Callable, Iterator, Sequence

from cdgen.errors import CorpusError, InputError
from cdgen.evaluation import results
from cdgen.evaluation.comparison import folder
from cdgen.evaluation.comparison.compare import compare
from cdgen.evaluation.comparison.data import Comparison, TaskSummary
from cdgen.report.content import Outcome, Table
from cdgen.report.parts import Part, of_kind
from cdgen.storage import manifest as manifests
from cdgen.wording import counted, joined

_OPTIONS = ("checkpoint", "resamples", "confidence", "seed")  # options of `cdgen compare`
_CLEAR = ("better", "worse")  # verdicts


def read_outcome(parts: Sequence[Part], note: Callable[[str], None]) -> Outcome | None:
    """Return the comparison among the parts of a report, or else that of the results, or else the results alone.

    Args:
        parts: the parts of the report.
        note: receives what is left out, and why.
    Returns:
        None if nothing was evaluated.
    """
    evaluated = of_kind(parts, manifests.RESULTS)
    compared = of_kind(parts, manifests.COMPARISON)
    comparison = _written(compared, note) or _computed(evaluated, note)
    if comparison is not None:
        return Outcome(comparison, None, _command(comparison, evaluated) if _is_of(comparison, evaluated) else "")
    entries = []
    for part in evaluated:
        try:
            entries += results.read(part.path)
        except (InputError, CorpusError) as error:
            note(f"{part.name} is left out: {error}")
    return Outcome(None, Table(results.HEADER, tuple(results.rows(entries))), "") if entries else None


def summary(comparison: Comparison) -> str:
    """Return a comparison in one sentence: the mean relative change, and clear differences on tasks not in the mean."""
    others = comparison.methods[1:]
    changes = {one.method: one.mean_relative_change for one in others if one.mean_relative_change is not None}
    methods = counted(len(others), "method was", "methods were")
    said = [f"{methods} compared with {comparison.baseline} on {counted(len(comparison.tasks), 'task')}"]
    if changes:
        better, worse = ([name for name, one in changes.items() if comparison.verdict(one) == what] for what in _CLEAR)
        said.append(_that_are(better, "better") if better else "no improvement on average could be shown")
        said += [_that_are(worse, "worse")] if worse else []
    else:
        said.append("no task qualifies for the mean relative change")
    for task in comparison.tasks:
        if not task.in_mean:
            said += _on_task(comparison, task)
    return f"{'; '.join(said)}."


def _that_are(methods: Sequence[str], what: str) -> str:
    return f"{joined(methods)} {'is' if len(methods) == 1 else 'are'} {what}"


def _on_task(comparison: Comparison, task: TaskSummary) -> Iterator[str]:
    """Yield which methods are clearly better on a task, and which are clearly worse."""
    effects = {one.method: comparison.result(one.method, task.name).difference for one in comparison.methods[1:]}
    for what in _CLEAR:
        found = [
            name for name, one in effects.items() if one and comparison.verdict(one, task.higher_is_better) == what
        ]
        if found:
            yield f"{_that_are(found, what)} on {task.name}"


def _written(compared: Sequence[Part], note: Callable[[str], None]) -> Comparison | None:
    """Return the first comparison that can be read."""
    found = None
    for part in compared:
        if found is not None:
            note(f"{part.name} is left out: a report shows one comparison.")
            continue
        try:
            found = folder.read(part.path)
        except CorpusError as error:
            note(f"{part.name} is left out: {error}")
    return found


def _computed(evaluated: Sequence[Part], note: Callable[[str], None]) -> Comparison | None:
    """Return the comparison of results with the default baseline; None if they have one label, or no baseline."""
    labels = {entry["model"]["label"] for part in evaluated for entry in part.manifest["results"]}
    if len(labels) < 2:
        return None
    try:
        return compare([part.path for part in evaluated])
    except (InputError, CorpusError, OSError) as error:
        note(f"The results are not compared: {error}. A comparison of cdgen compare --out can be shown.")
        return None


def _is_of(comparison: Comparison, evaluated: Sequence[Part]) -> bool:
    """Return whether a comparison has the methods and training runs of these results, and no others."""
    entries = [entry["model"] for part in evaluated for entry in part.manifest["results"]]
    compared = {(result.method, run.seed) for result in comparison.results for run in result.runs}
    return compared == {(entry["label"], entry["seed"]) for entry in entries}


def _command(comparison: Comparison, evaluated: Sequence[Part]) -> str:
    """Return the command that computes a comparison from results."""
    argv = ["cdgen", "compare", *(str(part.path) for part in evaluated), "--baseline", comparison.baseline]
    defaults = inspect.signature(compare).parameters
    for name in _OPTIONS:
        value = getattr(comparison, name)
        argv += [] if value == defaults[name].default else [f"--{name}", str(value)]
    return shlex.join(argv)
