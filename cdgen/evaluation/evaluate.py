"""Evaluate models on tasks, and write the results to a folder. A rerun resumes with the first task that is missing."""

import logging
import math
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from cdgen.environment import versions
from cdgen.errors import InputError
from cdgen.evaluation import results
from cdgen.evaluation.forms import form
from cdgen.evaluation.forms.base import Form, Item
from cdgen.evaluation.metrics import estimate
from cdgen.evaluation.scoring.conventions import CONVENTIONS, ConventionName
from cdgen.evaluation.scoring.evaluator import Evaluator
from cdgen.evaluation.tasks import Task
from cdgen.models.dtypes import dtype_name, float_dtype
from cdgen.models.files import locate
from cdgen.models.loading import load, usable_device
from cdgen.storage import manifest as manifests
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder
from cdgen.storage.progress import ITEMS, Progress, Silent
from cdgen.values import INT32_MAX, INT64_MAX, integer
from cdgen_kernels import implementation

if TYPE_CHECKING:
    from cdgen.models.language_model import LanguageModel

log = logging.getLogger("cdgen")

_LABEL = re.compile(r"\w[\w.-]{0,99}")
_LONGEST_NAME = 231  # bytes; while a file is written, its whole name in the folder is part of the name of one file
_UNSAFE = re.compile(r"[^\w.-]+|^[.-]+")


class Model(NamedTuple):
    """A model to evaluate.

    Attributes:
        label: the name by which models are compared; models that differ only in seed and step share it.
        source: the model, as :func:`cdgen.models.loading.load` takes it.
        seed: seed of the training run, or None if the model is not a checkpoint of one.
        step: step of the checkpoint, or None.
    """

    label: str
    source: str
    seed: int | None = None
    step: int | None = None

    def entry(self, fingerprint: str) -> results.ModelEntry:
        """Return the model as results.json stores it."""
        return {
            "label": self.label,
            "seed": self.seed,
            "step": self.step,
            "name": self.source,
            "fingerprint": fingerprint,
        }


class _Prepared(NamedTuple):
    """A task whose items have been read."""

    task: Task
    form: Form
    items: list[Item]
    entry: results.TaskEntry


def parse_models(stated: Sequence[str]) -> list[Model]:
    """Parse models that are stated as MODEL or LABEL=MODEL.

    The default label is the name of the model's folder. `RUN@all` stands for all checkpoints of a training run.

    Raises:
        InputError: a run has no such checkpoint, or two models have the same label, seed and step.
    """
    found = [model for text in stated for model in _parse_model(text)]
    names: dict[str, Model] = {}
    for model in found:
        twin = names.setdefault(results.scores_name(model.entry(""), ""), model)
        if twin is not model:
            raise InputError(
                f"{model.source} and {twin.source} have the same label, {model.label}; write LABEL={model.source}"
            )
    return found


def _parse_model(stated: str) -> list[Model]:
    label, _, source = stated.partition("=")
    if not source or os.path.exists(stated) or os.path.exists(stated.rpartition("@")[0]):
        label, source = "", stated
    elif not _LABEL.fullmatch(label):
        raise InputError(
            f"{stated}: no such folder or file, nor LABEL=MODEL: a label has at most 100 letters, digits and ._-, and "
            "begins with a letter or digit"
        )
    run, _, which = source.rpartition("@")
    run_json = runs.read(run) if run and not Path(source).exists() else None
    name = run if run_json else source
    label = label or _default_label(name)
    if run_json is None:
        return [Model(label, source)]
    seed, checkpoints = run_json["config"].get("seed"), run_json["checkpoints"]
    if which == "all":
        steps = [one["step"] for one in checkpoints]
    else:
        steps = [int(Path(runs.resolve(source)).name.removeprefix("step_"))]  # checks that there is such a checkpoint
    if not steps:
        raise InputError(f"{source}: the run has no checkpoint yet")
    known = seed if type(seed) is int and 0 <= seed <= INT64_MAX else None
    return [Model(label, f"{run}@{step}", known, step) for step in steps]


def _default_label(name: str) -> str:
    """Return the name of a model's folder as a label."""
    folder = Path(os.path.abspath(Path(name).expanduser())).name.removesuffix(".gguf")
    label = _UNSAFE.sub("-", folder).lstrip("-")
    if not _LABEL.fullmatch(label):
        raise InputError(f"{name}: the name of this folder cannot be the model's label; write LABEL={name}")
    return label


def evaluate(
    models: Sequence[Model],
    tasks: Sequence[Task],
    out: str | os.PathLike[str],
    *,
    convention: ConventionName = "lm-eval",
    batch_tokens: int | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> list[results.Entry]:
    """Evaluate each model on each task.

    Args:
        models: the models, as :func:`parse_models` returns them.
        tasks: the tasks, as :func:`cdgen.evaluation.tasks.parse_task` returns them.
        out: folder of the results. Results that it holds already are kept; those of the same model, items and
            convention are not computed again.
        convention: how texts become scored tokens; see :mod:`cdgen.evaluation.scoring.conventions`.
        batch_tokens: maximum number of tokens in one forward pass, padding included; default: by device.
        dtype: dtype of the weights; default: see :func:`cdgen.models.dtypes.default_dtype`.
        device: default: cuda if available.
        trust_remote_code: run Python code that comes with a checkpoint.
        progress: receives the number of items that have been scored.
    Returns:
        One entry per model and task, tasks of the first model first.
    Raises:
        InputError: a model or a task cannot be used, a score is NaN, or the folder holds other scores of the same name.
        CorpusError: the folder cannot be written, or what it holds is damaged or not results.
    """
    check_request(tasks, convention, batch_tokens, dtype, device)
    _check_names(models, tasks)
    shown = progress or Silent()
    prepared = [_prepare(task, convention) for task in tasks]
    for model in models:  # a missing one is reported before the others are scored
        locate(model.source, trust_remote_code)
    with OutputFolder(out) as folder:
        manifests.check_no_other_kind(folder.path, manifests.RESULTS)
        new = manifests.new(manifests.RESULTS) | {"environments": [], "results": []}
        manifest = results.read_manifest(folder.path) or new
        names = []
        for model in models:
            loaded, tokenizer = load(model.source, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
            if tokenizer is None:
                raise InputError(f"{model.source}: has no tokenizer; put its files beside the weights")
            evaluator: Evaluator | None = None
            for each in prepared:
                names.append(results.scores_name(model.entry(""), each.task.name))
                dtype_now = dtype_name(loaded.module.dtype)
                if not results.is_done(folder.path, manifest, model.entry(loaded.fingerprint), each.entry, dtype_now):
                    try:
                        evaluator = evaluator or Evaluator(loaded, tokenizer, convention, batch_tokens)
                        evaluator.report = _begin(shown, names[-1], len(each.items))
                        table = each.form.score(each.items, evaluator)
                    except InputError as error:
                        raise InputError(f"{model.source}, task {each.task.name}: {error}") from error
                    _add(folder, manifest, model, loaded, each, table)
    by_name = {entry.name: entry for entry in results.read(folder.path)}
    return [by_name[name] for name in names]


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


def _check_names(models: Sequence[Model], tasks: Sequence[Task]) -> None:
    """Raise InputError if the name of a table's file would be too long for the file system, before scores are lost."""
    for model in models:
        for task in tasks:
            name = results.scores_name(model.entry(""), task.name)
            if len(os.fsencode(name)) > _LONGEST_NAME:
                raise InputError(f"{name}: is too long for the name of a file; use a shorter label or name of the task")


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
