"""Evaluate models on tasks, and write the results to a folder. A rerun resumes with the first task that is missing."""

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch

from cdgen.environment import versions
from cdgen.errors import InputError
from cdgen.evaluation import results
from cdgen.evaluation.forms import form
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.metrics import estimate
from cdgen.evaluation.models import Model, parse_models
from cdgen.evaluation.scoring.conventions import CONVENTIONS, ConventionName
from cdgen.evaluation.scoring.evaluator import Evaluator
from cdgen.evaluation.tasks import Task, parse_task
from cdgen.models.dtypes import dtype_name, float_dtype
from cdgen.models.files import locate
from cdgen.models.loading import load, usable_device
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder
from cdgen.storage.progress import ITEMS, Progress, displayed
from cdgen.values import INT32_MAX, integer, shown
from cdgen_kernels import implementation

if TYPE_CHECKING:
    from cdgen.models.language_model import LanguageModel

log = logging.getLogger("cdgen")

_Stated: TypeAlias = str | os.PathLike[str]
_LONGEST_NAME = 231  # bytes; while a file is written, its whole name in the folder is part of the name of one file


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        folder: the folder of the results, which :func:`~cdgen.evaluation.comparison.compare.compare` takes.
        entries: an entry per model and task, with the values of all metrics and the scores of the items.
    """

    folder: Path
    entries: tuple[results.Entry, ...]

    def __repr__(self) -> str:
        return f"Evaluation(folder={self.folder!r}, values={self.values})"

    def __str__(self) -> str:
        return "\n".join(results.lines(self.entries))

    @property
    def values(self) -> dict[str, dict[str, float]]:
        """The value of each task's first metric, by model and task; the names of models are those of the table."""
        found: dict[str, dict[str, float]] = {}
        for entry in self.entries:
            found.setdefault(entry.model_name, {})[entry.task["name"]] = entry.values[entry.metrics[0].name]
        return found


class _Prepared(NamedTuple):
    """A task whose items have been read."""

    task: Task
    form: Form
    items: list[Item]
    entry: results.TaskEntry


def evaluate(
    models: _Stated | Model | Sequence[_Stated | Model],
    tasks: _Stated | Task | Sequence[_Stated | Task],
    out: str | os.PathLike[str],
    *,
    convention: ConventionName = "lm-eval",
    batch_tokens: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    progress: Progress | bool | None = None,
) -> Evaluation:
    """Evaluate each model on each task.

    Args:
        models: paths, strings such as "run@best" or "LABEL=MODEL", or what :func:`parse_models` gives; one or several.
        tasks: strings such as "perplexity=corpus", or what :func:`~cdgen.evaluation.tasks.parse_task` returns.
        out: folder of the results. Those that it holds of the same model, items and convention are kept.
        convention: how texts become scored tokens; see :mod:`cdgen.evaluation.scoring.conventions`.
        batch_tokens: maximum number of tokens in one forward pass, padding included; default: by device.
        dtype: dtype of the weights; default: see :func:`cdgen.models.dtypes.default_dtype`.
        device: default: cuda if available.
        trust_remote_code: run Python code that comes with a checkpoint.
        progress: True shows a progress bar, as in :meth:`cdgen.ContrastiveLM.generate`; or a display of your own.
    Returns:
        The results: an entry per model and task, tasks of the first model first.
    Raises:
        InputError: a model or a task cannot be used, a score is NaN, or the folder holds other scores of the same name.
        CorpusError: the folder cannot be written, or what it holds is damaged or not results.
    """
    models, tasks = parse_models(_listed("models", models, Model)), _parsed(_listed("tasks", tasks, Task))
    check_request(tasks, convention, batch_tokens, dtype, device)
    names = _names(models, tasks)
    prepared = [_prepare(task, convention) for task in tasks]
    for model in models:  # a missing one is reported before the others are scored
        locate(model.source, trust_remote_code)
    with OutputFolder(out) as folder, displayed(progress) as display:
        manifests.check_no_other_kind(folder.path, manifests.RESULTS)
        new = manifests.new(manifests.RESULTS) | {"environments": [], "results": []}
        manifest = results.read_manifest(folder.path) or new
        results.check_free(folder.path, manifest, names)
        for model in models:
            loaded, tokenizer = load(model.source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            if tokenizer is None:
                raise InputError(f"{model.source}: has no tokenizer; put its files beside the weights")
            evaluator: Evaluator | None = None
            for each in prepared:
                dtype_now = dtype_name(loaded.module.dtype)
                if not results.is_done(folder.path, manifest, model.entry(loaded.fingerprint), each.entry, dtype_now):
                    name = results.scores_name(model.entry(""), each.task.name)
                    try:
                        evaluator = evaluator or Evaluator(loaded, tokenizer, convention, batch_tokens)
                        evaluator.report = _begin(display, name, len(each.items))
                        table = each.form.score(each.items, evaluator)
                    except InputError as error:
                        raise InputError(f"{model.source}, task {each.task.name}: {error}") from error
                    _add(folder, manifest, model, loaded, each, table)
            del loaded, evaluator  # so that two models are never in memory at once
    by_name = {entry.name: entry for entry in results.read(folder.path)}
    return Evaluation(folder.path, tuple(by_name[name] for name in names))


def _parsed(stated: Sequence[str | Task]) -> list[Task]:
    return [parse_task(each) if isinstance(each, str) else each for each in stated]


def _listed(name: str, given: Any, kind: type) -> list[Any]:
    """Return one item or several as a list of strings and of objects of this kind."""
    if isinstance(given, str | os.PathLike | Model | Task):  # a Model is a tuple
        given = [given]
    if not isinstance(given, Iterable) or isinstance(given, bytes | Mapping):
        raise InputError(f"{name} = {shown(given)}: give a string or a list")
    found = list(given)
    if not found:
        raise InputError(f"{name}: there are none")
    if wrong := [each for each in found if not isinstance(each, str | os.PathLike | kind)]:
        raise InputError(f"{name}: {shown(wrong[0])} is of type {type(wrong[0]).__name__}; give strings")
    return [each if isinstance(each, kind) else os.fspath(each) for each in found]


def check_request(
    tasks: Sequence[Task],
    convention: str,
    batch_tokens: int | None,
    dtype: str | torch.dtype | None,
    device: str | torch.device | None,
) -> None:
    """Check everything that can be checked before a file is read.

    Raises:
        InputError: a value cannot be used, or two tasks have the same name.
    """
    if convention not in CONVENTIONS:
        raise InputError(f"convention = {convention!r}: use {' or '.join(CONVENTIONS)}")
    if batch_tokens is not None:
        integer("batch_tokens", batch_tokens, 1, INT32_MAX)
    if dtype is not None:
        float_dtype("dtype", dtype)
    usable_device(device)
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"tasks: two have the name {twice}; write a task file with another name for one of them")


def _names(models: Sequence[Model], tasks: Sequence[Task]) -> list[str]:
    """Return the names of the tables of scores, if they are not too long for the file system."""
    names = [results.scores_name(model.entry(""), task.name) for model in models for task in tasks]
    for name in names:
        if len(os.fsencode(name)) > _LONGEST_NAME:
            raise InputError(f"{name}: is too long for the name of a file; use a shorter label or name of the task")
    return names


def _prepare(task: Task, convention: str) -> _Prepared:
    """Read the items of a task."""
    kind = form(task.form)
    items = kind.items(task)
    if not items:
        raise InputError(f"task {task.name}: has no items: {task.path or task.form} is empty")
    entry = results.task_entry(task.name, kind.name, convention, items, kind.metrics_of(task))
    return _Prepared(task, kind, items, entry)


def _begin(progress: Progress, name: str, total: int) -> Callable[[int, int], None]:
    """Begin the progress of one table; return the function to which the evaluator reports finished queries."""
    shown = 0
    progress.begin(total, unit=ITEMS, verb=f"to score for {name}")

    def report(done: int, queries: int) -> None:
        nonlocal shown
        now = total * done // max(queries, 1)
        if now > shown:  # a form may request scores several times
            progress.advance(now - shown)
            shown = now

    return report


def _add(
    folder: OutputFolder,
    manifest: manifests.Manifest,
    model: Model,
    loaded: "LanguageModel",
    each: _Prepared,
    table: dict[str, list[Any]],
) -> None:
    """Compute the metrics of a table of scores, and write both."""
    where = f"{model.source}, task {each.task.name}"
    columns = results.arrays(table, each.items, where)
    values = {metric.name: float(estimate(metric, columns)) for metric in each.form.metrics_of(each.task)}
    undefined = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if undefined is not None:
        raise InputError(f"{where}: {undefined} is {values[undefined]}: it is not defined for these items and scores")
    environment = versions() | {
        "device": str(loaded.device),
        "dtype": dtype_name(loaded.module.dtype),
        "implementation": implementation(loaded.device.type).name,
    }
    number, _ = manifests.add_environment(manifest, environment)
    named = {"id": [item.id for item in each.items], "group": [item.group for item in each.items], **table}
    results.add(folder, manifest, model.entry(loaded.fingerprint), each.entry, named, values, number)
