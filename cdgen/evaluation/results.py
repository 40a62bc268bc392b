"""The results of an evaluation: a table of scores for each model and task, and the manifest that lists them.

results.json                      what was evaluated, on which items, and the values of the metrics
scores/MODEL/TASK.parquet         one row per item: id, group, and the columns of the task's form
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from cdgen.errors import CorpusError, InputError
from cdgen.evaluation.forms.base import Item
from cdgen.evaluation.metrics import Metric
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder, file_sha256
from cdgen.storage.manifest import Manifest
from cdgen.values import expanded

NAME = manifests.FILE_NAMES[manifests.RESULTS]
HEADER = ("model", "task", "items", "result")  # columns of the table of results
_REMEDY = "restore it, or evaluate into another folder"


class ModelEntry(TypedDict):
    """A model in results.json."""

    label: str  # models are compared by label; it may be the method of their synthetic corpus
    seed: int | None  # seed of the training run; None for a model that is not a checkpoint of one
    step: int | None
    name: str  # the model as the user named it
    fingerprint: str


class TaskEntry(TypedDict):
    """A task in results.json."""

    name: str
    form: str
    convention: str
    items: int
    fingerprint: str  # sha256 over form, convention and items
    metrics: list[dict[str, Any]]  # the first one is the task's result


@dataclass(frozen=True)
class Entry:
    """The scores of one model on one task.

    Attributes:
        folder: the folder of the results.
        model: the model.
        task: the task.
        values: value of each metric by name.
        name: path of the table of scores, relative to the folder.
        sha256: checksum of that file.
    """

    folder: Path
    model: ModelEntry
    task: TaskEntry
    values: Mapping[str, float]
    name: str
    sha256: str

    @property
    def label(self) -> str:
        return self.model["label"]

    @property
    def seed(self) -> int | None:
        return self.model["seed"]

    @property
    def step(self) -> int | None:
        return self.model["step"]

    @property
    def model_name(self) -> str:
        """The model's label, with its seed and step if there are any, such as "real-seed42-step500"."""
        return self.name.split("/")[1]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple(Metric.from_json(metric) for metric in self.task["metrics"])

    def table(self, columns: Sequence[str] | None = None) -> dict[str, npt.NDArray[Any]]:
        """Read the table of scores.

        Args:
            columns: names of the columns to read; default: all.
        Returns:
            The columns by name, with one value per item [n], in the order of the items.
        Raises:
            CorpusError: the file is missing, truncated or altered, or has not one row per item.
        """
        import pyarrow.parquet

        path = self.folder / self.name
        if not path.is_file() or file_sha256(path) != self.sha256:
            raise CorpusError(f"{path}: is missing, truncated or altered; delete it and rerun cdgen evaluate")
        table = pyarrow.parquet.read_table(path, columns=list(columns) if columns is not None else None)
        items = self.task["items"]
        if table.num_rows != items:
            raise CorpusError(f"{path}: has {table.num_rows} rows, but {NAME} states {items} items; {_REMEDY}")
        return {name: table.column(name).to_numpy() for name in table.column_names}


def read(folder: str | os.PathLike[str]) -> list[Entry]:
    """Return the results in a folder.

    Raises:
        InputError: the folder holds no results.
        CorpusError: results.json is damaged.
    """
    path = expanded(folder)
    manifest = read_manifest(path)
    if manifest is None:
        raise InputError(f"{folder}: holds no results of an evaluation (it has no {NAME})")
    return [_entry(path, each) for each in manifest["results"]]


def read_manifest(folder: Path) -> Manifest | None:
    """Return the content of results.json, or None if the folder has none.

    Raises:
        CorpusError: it is damaged.
    """
    manifest = manifests.read(folder, manifests.RESULTS, _REMEDY)
    for each in manifest["results"] if manifest else ():
        try:
            metrics = [Metric.from_json(metric) for metric in each["task"]["metrics"]]
            fine = metrics and all(isinstance(each["values"][metric.name], int | float) for metric in metrics)
        except (KeyError, TypeError, ValueError):
            fine = False
        if not fine:
            raise CorpusError(f"{folder / NAME}: is damaged: a metric of {each['name']}; {_REMEDY}")
    return manifest


def _entry(folder: Path, found: Mapping[str, Any]) -> Entry:
    return Entry(
        folder,
        cast(ModelEntry, found["model"]),
        cast(TaskEntry, found["task"]),
        found["values"],
        found["name"],
        found["sha256"],
    )


def task_entry(name: str, form: str, convention: str, items: Sequence[Item], metrics: Sequence[Metric]) -> TaskEntry:
    """Return a task as results.json stores it."""
    digest = hashlib.sha256(json.dumps([form, convention]).encode())
    for item in items:
        digest.update(json.dumps(item, sort_keys=True, ensure_ascii=True).encode())
    return {
        "name": name,
        "form": form,
        "convention": convention,
        "items": len(items),
        "fingerprint": f"sha256:{digest.hexdigest()}",
        "metrics": [metric.as_json() for metric in metrics],
    }


def scores_name(model: ModelEntry, task: str) -> str:
    """Return the path of a table of scores, relative to the folder of the results."""
    parts = [model["label"]]
    parts += [f"seed{model['seed']}"] if model["seed"] is not None else []
    parts += [f"step{model['step']}"] if model["step"] is not None else []
    return f"scores/{'-'.join(parts)}/{task}.parquet"


def is_done(folder: Path, manifest: Manifest, model: ModelEntry, task: TaskEntry, dtype: str) -> bool:
    """Return whether the results hold a model's scores on a task, in a file that is intact.

    Raises:
        InputError: they hold scores on other items, of another convention, of other weights, or of weights of another
            dtype, under the same name.
    """
    name = scores_name(model, task["name"])
    found = next((each for each in manifest["results"] if each["name"] == name), None)
    if found is None:
        return False
    environments = dict(enumerate(manifest["environments"]))
    for what, before, now in (
        ("the dtype", environments.get(found["environment"], {}).get("dtype", dtype), dtype),
        (f"the weights of {model['name']}", found["model"]["fingerprint"], model["fingerprint"]),
        ("the form", found["task"]["form"], task["form"]),
        ("the convention", found["task"]["convention"], task["convention"]),
        ("the number of items", found["task"]["items"], task["items"]),
        ("the items", found["task"]["fingerprint"], task["fingerprint"]),
    ):
        if before != now:
            shown = "" if str(now).startswith("sha256:") else f" ({before}, now {now})"
            raise InputError(
                f"{folder / name}: {what} of the task {task['name']} changed since it was written{shown}; "
                "evaluate into another folder"
            )
    path = folder / name
    return path.is_file() and file_sha256(path) == found["sha256"]


def check_free(folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Check that tables of scores can be written, before they are computed.

    Raises:
        CorpusError: a file or folder that cdgen did not write has one of the names, or that of a folder above.
    """
    manifests.check_free(folder, names, [each["name"] for each in manifest["results"]])
    for table in (folder / name for name in names):
        for path, is_right in ((table.parent.parent, Path.is_dir), (table.parent, Path.is_dir), (table, Path.is_file)):
            if os.path.lexists(path) and not is_right(path):
                raise CorpusError(f"{path}: is in the way; move it, or choose another folder")


def add(
    folder: OutputFolder,
    manifest: Manifest,
    model: ModelEntry,
    task: TaskEntry,
    table: Mapping[str, Sequence[Any]],
    values: Mapping[str, float],
    environment: int,
) -> None:
    """Write a table of scores, and list it in results.json.

    Args:
        folder: the folder of the results.
        manifest: its manifest, which is extended.
        model: the model.
        task: the task.
        table: the columns of the table, with `id` and `group`.
        values: value of each metric by name.
        environment: index in the manifest's `environments`.
    """
    import pyarrow
    import pyarrow.parquet

    name = scores_name(model, task["name"])
    listed = [each["name"] for each in manifest["results"]]
    manifests.check_free(folder.path, [name], listed)
    buffer = io.BytesIO()
    # Numbers and ids hardly repeat; without a dictionary, a file is about half as large.
    pyarrow.parquet.write_table(pyarrow.table(dict(table)), buffer, compression="zstd", use_dictionary=["group"])
    entry = {
        "model": dict(model),
        "task": dict(task),
        "values": dict(values),
        "name": name,
        "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
        "environment": environment,
    }
    if name in listed:
        manifest["results"][listed.index(name)] = entry
    else:
        manifest["results"].append(entry)
    # The list comes first: a process that is killed after it leaves no file that is not listed.
    folder.write_all({NAME: manifests.encode(manifest), name: buffer.getvalue()})


def arrays(table: Mapping[str, Sequence[Any]], items: Sequence[Item], where: str) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a table whose values are numbers or text, as arrays [n], and the column `group`.

    Args:
        table: the columns by name.
        items: the items of the rows.
        where: model and task, for messages.
    Raises:
        InputError: a score is NaN; the message names the item.
    """
    found = {name: np.array(values) for name, values in table.items() if not isinstance(values[0], (list, tuple))}
    for name, values in found.items():
        assert values.shape == (len(items),), f"{where}: {name} has shape {values.shape} for {len(items)} items"
        if values.dtype.kind == "f" and np.isnan(values).any():
            item = items[int(np.isnan(values).argmax())]
            raise InputError(f"{where}: {name} of the item {item.id} is NaN; the weights of the model are damaged")
    return found | {"group": np.array([item.group for item in items])}


def rows(entries: Sequence[Entry]) -> list[tuple[str, str, str, str]]:
    """Return a table of results: per model and task, the names of both, the number of items, and the metrics."""
    return [
        (
            entry.model_name,
            entry.task["name"],
            str(entry.task["items"]),
            ", ".join(f"{metric} {value:.4g}" for metric, value in entry.values.items()),
        )
        for entry in entries
    ]


def lines(entries: Sequence[Entry]) -> Iterator[str]:
    """Iterate over the lines of a table of results: a line per model and task, with the task's metrics."""
    found = rows(entries)
    model_width = max([5, *(len(model) for model, *_ in found)])
    task_width = max([4, *(len(task) for _, task, *_ in found)])
    for model, task, items, result in [HEADER, *found]:
        yield f"{model:<{model_width}}  {task:<{task_width}}  {items:>6}  {result}"
