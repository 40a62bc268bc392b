"""Tasks: a form, the files with the items, and how the form reads them.

A task is stated as NAME or NAME=PATH, where NAME is a form or one of the task files that come with cdgen, or as the
path of a task file in TOML:

    form = "multiple_choice"
    name = "xcopa-it"                                # default: the name of the task file
    path = "val.it.jsonl"                            # relative to the task file
    [fields]
    context = "{{premise[:-1]}} perché"              # a Jinja template, or the name of a field of each record
    choices = ["choice1", "choice2"]
    label = "label"
    [options]                                        # the form's own options
"""

import math
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from cdgen.corpus.records import HUB, all_fields, check_text, format_of
from cdgen.corpus.text_files import check_path
from cdgen.errors import InputError, first_line
from cdgen.evaluation.forms import FORMS, form
from cdgen.evaluation.forms.base import REQUIRED, Template
from cdgen.evaluation.templates import check_template, render
from cdgen.values import FLOAT32_MAX, INT64_MAX, expanded, integer, shown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]

TASK_FILES = Path(__file__).parent / "task_files"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_KEYS = ("form", "name", "path", "fields", "options")
_ID = "{{file}}:{{number}}"  # default template of an item's id


@dataclass(frozen=True)
class Task:
    """A task to evaluate models on.

    Attributes:
        name: name of the task in results.
        form: name of its form.
        path: file or folder of the items, `hub:` and a name on the hub, or None if the form makes the items.
        fields: templates that replace the form's defaults, by field.
        options: values that replace the form's defaults, by option.
        limit: maximum number of records per file, of documents, or of items that the form makes; None means all.
        seed: random seed of forms that make their items.
    Raises:
        InputError: there is no such form, or a value cannot be used with it.
    """

    name: str
    form: str
    path: str | None = None
    fields: Mapping[str, Template] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise InputError(
                f"task {shown(self.name)}: its name must have 1 to 100 letters, digits and ._-, and begin with an "
                "ASCII letter or digit"
            )
        kind = form(self.form)
        defaults = {"id": _ID, **kind.fields}
        for name, template in self.fields.items():
            _check_name(f"task {self.name}: field", name, defaults)
            parts = template if isinstance(template, list) else [template]
            if not parts or not all(isinstance(part, str) and part for part in parts):
                raise InputError(
                    f"task {self.name}: field {name} = {shown(template)}: give a field's name or a template"
                )
            for part in parts:
                check_template(f"task {self.name}: field {name}", part)
        for name, value in self.options.items():
            _check_name(f"task {self.name}: option", name, kind.options)
            _check_type(f"task {self.name}: option {name}", value, kind.options[name])
        missing = [name for name, default in kind.fields.items() if default == REQUIRED and name not in self.fields]
        if missing:
            raise InputError(
                f"task {self.name}: states no field {missing[0]!r}, which {self.form} needs; write a task file with it"
            )
        if self.path is None and kind.path == "required":
            raise InputError(f"task {self.name}: needs a file; write {self.name}=PATH")
        if self.limit is not None:
            integer("limit", self.limit, 1, INT64_MAX)
        integer("seed", self.seed, 0, INT64_MAX)

    def option(self, name: str) -> Any:
        """Return the value of one of the form's options."""
        return self.options.get(name, form(self.form).options[name])


class Row(NamedTuple):
    """A record of a task's file, with the values of the form's fields.

    Attributes:
        where: file and place of the record, for messages.
        id: id of the item.
        values: value of each field of the form.
    """

    where: str
    id: str
    values: dict[str, Any]


def parse_task(stated: str, *, limit: int | None = None, seed: int = 0) -> Task:
    """Parse a task that is stated as NAME, NAME=PATH, or the path of a task file, with or without =PATH.

    Args:
        stated: the text.
        limit, seed: see :class:`Task`.
    Raises:
        InputError: there is no such task, or its file cannot be used.
    """
    is_file = stated.endswith(".toml") and os.path.isfile(stated)  # its path may contain "="
    name, equals, path = (stated, "", "") if is_file else stated.partition("=")
    if not name or (equals and not path):
        raise InputError(f"task {stated!r}: write NAME, NAME=PATH or the path of a task file")
    options: dict[str, Any] = {"limit": limit, "seed": seed, **({"path": path} if path else {})}
    if name in FORMS:
        return Task(name, name, **options)
    if (TASK_FILES / f"{name}.toml").is_file():
        return _from_file(TASK_FILES / f"{name}.toml", options)
    if name.endswith(".toml"):
        return _from_file(Path(name), options)
    raise InputError(f"task {stated!r}: {name!r} is neither a task nor a .toml file; use {', '.join(names())}")


def names() -> list[str]:
    """Return the names of all forms, and of the task files that come with cdgen."""
    return [*FORMS, *sorted({path.stem for path in TASK_FILES.glob("*.toml")} - {*FORMS})]


def _from_file(path: Path, options: dict[str, Any]) -> Task:
    """Return the task that a task file describes."""
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # a byte-order mark is not part of it
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"{path}: cannot be read as a task file: {reason}") from error
    for key, value in content.items():
        _check_name(f"{path}: key", key, _KEYS)
        if not isinstance(value, dict if key in ("fields", "options") else str):
            raise InputError(f"{path}: {key} = {shown(value)}: must be {'a table' if key[-1] == 's' else 'text'}")
    if "form" not in content:
        raise InputError(f"{path}: states no form; use one of {', '.join(FORMS)}")
    stated = content.pop("path", None)
    if stated is not None and "path" not in options:
        own = expanded(stated)
        options = options | {"path": stated if stated.startswith(HUB) else str(path.parent / own)}
    try:
        return Task(**{"name": path.stem, **content, **options})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_name(what: str, name: str, known: Mapping[str, Any] | tuple[str, ...]) -> None:
    if name not in known:
        raise InputError(f"{what} {name!r}: is not known; use {', '.join(known) or 'none'}")


def _check_type(where: str, value: Any, default: Any) -> None:
    """Check that an option has the type of its default; a whole number is also a number."""
    fits = type(value) is type(default) or (type(default) is float and type(value) is int)
    if not fits:
        raise InputError(f"{where} = {shown(value)}: must be of the type of its default, {default!r}")


def rows(task: Task) -> Iterator[Row]:
    """Iterate over the records of a task's files with the values of the form's fields.

    Templates see the record's own fields, `file`, the name of its file without the extension, and `number`, its place
    in the file.

    Raises:
        InputError: a file cannot be read, a record lacks a field, or two items have the same id.
    """
    assert task.path is not None, "the form reads files"
    kind = form(task.form)
    templates = {"id": _ID, **kind.fields, **task.fields}
    seen: dict[str, str] = {}
    for path in _files(task.path):
        stem = re.sub(r"\.(jsonl|parquet)(\.gz|\.zst)?$", "", path.rpartition("/")[2])
        for count, record in enumerate(all_fields(path)):
            if count == task.limit:
                break
            place = f"{path}: {record.place}"
            fields = {"file": stem, "number": record.number, **record.fields}
            values = {
                name: _value(f"task {task.name}: field {name}", template, fields, place)
                for name, template in templates.items()
                if template is not None
            }
            own = check_text(place, "the item's id", str(values.pop("id")))
            if own in seen:
                raise InputError(f"{place}: the item {own!r} is also at {seen[own]}; give each item its own id")
            seen[own] = place
            yield Row(place, own, values)


def _value(where: str, template: Template, fields: Mapping[str, Any], place: str) -> Any:
    if isinstance(template, list):
        return [render(where, part, fields, place) for part in template]
    return render(where, template, fields, place)


def _files(path: str) -> list[str]:
    """Return the files of a path: the path itself, or the files of a folder that `datasets` did not write."""
    if path.startswith(HUB):
        return [path]
    folder = expanded(path)
    check_path(folder, "item")
    if not folder.is_dir() or (folder / "state.json").exists() or (folder / "dataset_dict.json").exists():
        return [str(folder)]
    found = sorted(str(each) for each in folder.iterdir() if each.is_file() and format_of(each) in ("jsonl", "parquet"))
    if not found:
        raise InputError(f"{path}: holds no .jsonl or .parquet files")
    return found


def text(row: Row, name: str) -> str:
    """Return the value of a field, which must be text and not empty.

    Raises:
        InputError: the value is something else.
    """
    found = check_text(row.where, f"field {name!r}", row.values[name])
    if not found.strip():
        raise InputError(f"{row.where}: field {name!r} is empty")
    return found


def number(row: Row, name: str) -> float:
    """Return the value of a field, which must be a finite number, or text that states one.

    Raises:
        InputError: the value is something else.
    """
    value = row.values[name]
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= FLOAT32_MAX:  # the squares of products of larger ones are not finite
        raise InputError(
            f"{row.where}: field {name!r} = {shown(value)}: must be a finite number, at most {FLOAT32_MAX:.2g} in size"
        )
    return found


def group(row: Row, name: str = "group") -> str:
    """Return the value of a field that names a group, as text.

    Raises:
        InputError: the text cannot be encoded.
    """
    return check_text(row.where, f"field {name!r}", str(row.values.get(name, "")))
