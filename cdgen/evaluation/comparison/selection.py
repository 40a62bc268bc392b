"""Which results are compared: the same items for all models, and one checkpoint per method, training run and task."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from cdgen.errors import InputError
from cdgen.evaluation import results
from cdgen.evaluation.metrics import GROUP, Table
from cdgen.evaluation.results import Entry
from cdgen.values import FLOAT32_MAX, expanded

CHECKPOINTS = ("best", "latest")
Run: TypeAlias = tuple[str, int | None]  # label and seed
_FEWEST_ITEMS = 20  # a bootstrap of fewer says little


class Selection(NamedTuple):
    """What is compared.

    Attributes:
        runs: label and seed of each run, runs of a label together.
        entries: the chosen entries by task, in the order of `runs`.
        warnings: tasks that were left out, and limits of the comparison.
    """

    runs: list[Run]
    entries: dict[str, list[Entry]]
    warnings: list[str]


def read_all(folders: Iterable[str | os.PathLike[str]]) -> list[Entry]:
    """Return the results in several folders; a folder that is named twice is read once.

    Raises:
        InputError: a folder holds no results, or there is no folder.
        CorpusError: a results.json is damaged.
    """
    distinct = {os.path.realpath(expanded(folder)): folder for folder in folders}
    found = [entry for folder in distinct.values() for entry in results.read(folder)]
    if not found:
        raise InputError(f"{', '.join(map(str, distinct.values())) or 'results'}: no results to compare")
    return found


def select(entries: Sequence[Entry], checkpoint: str) -> Selection:
    """Choose the tasks that all runs share, and a checkpoint for each run and task.

    The best checkpoint is the one with the best value of the task's first metric, the earliest of equal ones. It is
    chosen on the items on which it is then compared, as in Ulm et al. (2025). That favours a method with more
    checkpoints, or with more variation among them, and intervals do not account for the choice.

    Args:
        entries: all results.
        checkpoint: "best" or "latest".
    Raises:
        InputError: two results have the same label, seed, step and task, results of a task cannot be compared, or no
            task is left.
    """
    _check_distinct(entries)
    runs = list(dict.fromkeys((entry.label, entry.seed) for entry in entries))
    labels = list(dict.fromkeys(label for label, _ in runs))
    runs.sort(key=lambda run: labels.index(run[0]))
    chosen: dict[str, list[Entry]] = {}
    warnings: list[str] = []
    for task in dict.fromkeys(entry.task["name"] for entry in entries):
        of_task = [entry for entry in entries if entry.task["name"] == task]
        _check_same_items(of_task)
        by_run = {run: [entry for entry in of_task if (entry.label, entry.seed) == run] for run in runs}
        missing = [shown(run) for run, found in by_run.items() if not found]
        items = of_task[0].task["items"]
        if missing:
            warnings.append(f"{task} is left out, because it was not evaluated for {', '.join(missing)}")
        elif items < 2:
            warnings.append(f"{task} is left out, because it has a single item, which says nothing about others")
        else:
            if items < _FEWEST_ITEMS:
                warnings.append(f"{task} has only {items} items: its intervals are too narrow, its p-values too small")
            chosen[task] = [_choose(found, checkpoint) for found in by_run.values()]
    if not chosen:
        raise InputError(f"no task can be compared: {'; '.join(warnings)}")
    warnings += _unlike_checkpoints([entry for entry in entries if entry.task["name"] in chosen])
    if checkpoint == "best":
        warnings += _unequal_choices(entries, runs, next(iter(chosen)))
    return Selection(runs, chosen, warnings)


def shown(run: Run) -> str:
    """Return the name of a run for messages."""
    label, seed = run
    return label if seed is None else f"{label} (seed {seed})"


def scores(entry: Entry) -> Table:
    """Return the columns that a result's first metric reads.

    Raises:
        InputError: a column is missing, or has a value that is not a finite number, or too large for float32.
        CorpusError: the file is damaged.
    """
    metric, path = entry.metrics[0], entry.folder / entry.name
    try:
        table = entry.table([*metric.numbers, GROUP])
    except ValueError:  # pyarrow's error for a missing column
        table = {}
    for name in metric.numbers:
        if name not in table or table[name].dtype.kind not in "biuf":
            raise InputError(f"{path}: lacks the numeric column {name!r} of {metric.name}; evaluate the model again")
        bad = ~(np.abs(table[name], dtype=np.float64) <= FLOAT32_MAX)  # the squares of larger ones are not finite
        if bad.any():
            at = int(bad.argmax())
            item = entry.table(["id"])["id"][at]
            raise InputError(
                f"{path}: column {name!r} of the item {item} is {table[name][at]}; evaluate the model again"
            )
    return table


def _check_distinct(entries: Sequence[Entry]) -> None:
    """Raise InputError if two results have the same label, seed, step and task."""
    known: dict[tuple[str, int | None, int | None, str], Entry] = {}
    for entry in entries:
        key = (entry.label, entry.seed, entry.step, entry.task["name"])
        if key in known:
            step = "" if entry.step is None else f", step {entry.step}"
            raise InputError(
                f"{known[key].folder} and {entry.folder}: both hold the task {entry.task['name']} for "
                f"{shown((entry.label, entry.seed))}{step}; evaluate one of the models as LABEL=MODEL, or leave one out"
            )
        known[key] = entry


def _check_same_items(entries: Sequence[Entry]) -> None:
    """Raise InputError if the results of a task differ in their items, convention or metrics."""
    first = entries[0]
    for entry in entries:
        one, other = first.task, entry.task
        if one == other:
            continue
        if one["convention"] != other["convention"]:
            how = f"in different conventions ({one['convention']} and {other['convention']})"
        elif one["items"] != other["items"]:
            how = f"on different items ({one['items']} and {other['items']} of them)"
        elif one["fingerprint"] != other["fingerprint"]:
            how = "on different items"
        else:
            how = "with different metrics"
        models = " and ".join(f"{each.folder} ({shown((each.label, each.seed))})" for each in (first, entry))
        raise InputError(
            f"{models}: evaluated the task {one['name']} {how}; evaluate both with the same task, limit and convention"
        )


def _choose(entries: Sequence[Entry], checkpoint: str) -> Entry:
    """Return the best or the last checkpoint of one run on one task."""
    ordered = sorted(entries, key=lambda entry: -1 if entry.step is None else entry.step)
    if checkpoint == "latest":
        return ordered[-1]
    metric = entries[0].metrics[0]
    sign = 1 if metric.higher_is_better else -1
    return max(ordered, key=lambda entry: sign * entry.values[metric.name])


def _unlike_checkpoints(entries: Sequence[Entry]) -> list[str]:
    """Return warnings if a run's tasks were evaluated for different checkpoints, or if it may be several runs."""
    tasks = list(dict.fromkeys(entry.task["name"] for entry in entries))
    steps: dict[Run, dict[str, set[int]]] = {}
    folders: dict[Run, dict[str, None]] = {}
    for entry in entries:
        if entry.step is not None:
            run = (entry.label, entry.seed)
            steps.setdefault(run, {task: set() for task in tasks})[entry.task["name"]].add(entry.step)
            folders.setdefault(run, {})[entry.model["name"].rpartition("@")[0]] = None
    warnings = []
    for run, of_task in steps.items():
        every = set[int]().union(*of_task.values())
        for task, found in of_task.items():
            if found != every:
                missing = ", ".join(map(str, sorted(every - found)))
                warnings.append(
                    f"{task} was evaluated for {len(found)} of {len(every)} checkpoints of {shown(run)}, not for step "
                    f"{missing}; rerun cdgen evaluate"
                )
        if len(folders[run]) > 1:
            warnings.append(
                f"the checkpoints of {shown(run)} come from {' and '.join(folders[run])}, which are taken for one "
                "training run; if they are not, evaluate one of them as LABEL=MODEL"
            )
    return warnings


def _unequal_choices(entries: Sequence[Entry], runs: Sequence[Run], task: str) -> list[str]:
    """Return a warning if the best checkpoint is chosen from more checkpoints for some runs than for others."""
    keys = [(entry.label, entry.seed) for entry in entries if entry.task["name"] == task]
    counts = {run: keys.count(run) for run in runs}
    fewest, most = min(runs, key=counts.__getitem__), max(runs, key=counts.__getitem__)
    if counts[fewest] == counts[most]:
        return []
    return [
        f"the best of {counts[most]} checkpoints of {shown(most)} is compared with the best of {counts[fewest]} of "
        f"{shown(fewest)}; that favours the former"
    ]
