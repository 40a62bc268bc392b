"""Stream records from text files, JSON lines, Parquet, `datasets` folders and the hub, in bounded memory."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from cdgen.corpus.stated_files import check_stated_files
from cdgen.corpus.text_files import check_path, lines, whole_text
from cdgen.errors import InputError, first_line, printable
from cdgen.storage import manifest as manifests

if TYPE_CHECKING:
    import pyarrow

FORMATS = ".txt, .jsonl (both also .gz or .zst), .parquet, or a folder that datasets can load"
_FIELD_FORMATS = ".jsonl (also .gz or .zst), .parquet, or a folder that datasets can load"
HUB = "hub:"
_HUB_NAMES = "hub:owner/name, hub:owner/name:split or hub:owner/name:config:split"
# An owner is required: datasets takes names such as "json" for formats, and reads the files in the current folder.
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_SAVED = ("state.json", "dataset_dict.json")  # written by save_to_disk
_TABLES = ("parquet", "json", "csv", "arrow")  # what datasets calls files of rows with fields

_BUFFER = 1 << 20  # bytes of a Parquet column that are read at once
_ROWS = 256  # rows of Parquet and datasets that are in memory at once
_SHOWN_NAMES = 8  # field names in a message
_SHOWN_CHARACTERS = 40  # characters of each


class Record(NamedTuple):
    """A text and its name: the record's own `id`, or its number in the file, from 1."""

    id: str | int
    text: str


class NumberedRecord(NamedTuple):
    """A text, its number in the file, from 1, and the record's own `id`, if it has one."""

    number: int
    own_id: str | None
    text: str


class Fields(NamedTuple):
    """A record with its fields, and where it is in its file, for messages."""

    place: str
    number: int
    fields: dict[str, Any]


def records(path: str | Path, field: str = "text", *, remedy: str = "choose one with field=NAME") -> Iterator[Record]:
    """Iterate over the records of a file; a .txt file is one record.

    Args:
        path: a file or folder, see :data:`FORMATS`; or `hub:owner/name`, `hub:owner/name:split` (default: train) or
            `hub:owner/name:config:split`. Text is UTF-8, or UTF-16 or UTF-32 if it starts with their byte-order mark,
            which is removed.
        field: name of the text's field in JSON lines, Parquet and datasets. Records may also have an `id`, which is
            text or a number.
        remedy: how to choose another field, for messages.
    Raises:
        InputError: something cannot be read; the message names the file and the place.
    """
    found = numbered_records(path, field, remedy=remedy)
    return (Record(one.number if one.own_id is None else one.own_id, one.text) for one in found)


def numbered_records(
    path: str | Path, field: str = "text", *, remedy: str, whole: bool = True, noun: str = "text"
) -> Iterator[NumberedRecord]:
    """Iterate over the records of a file like :func:`records`, with their numbers as well as their own ids.

    Args:
        path: a file, a folder, or a name on the hub.
        field: name of the text's field.
        remedy: how to choose another field, for messages.
        whole: if True a .txt file is one record, else each of its lines is.
        noun: what is read, for messages.
    Raises:
        InputError: something cannot be read; the message names the file and the place.
    """
    if not str(path).startswith(HUB):
        check_path(Path(path), noun)
        if format_of(Path(path)) == "txt":
            return _from_text(Path(path), whole)
    return _texts_of(path, _fields(path, noun, field, remedy), field, remedy)


def all_fields(path: str | Path, noun: str = "item") -> Iterator[Fields]:
    """Iterate over the records of JSON lines, Parquet or datasets, with all their fields as Python objects.

    Args:
        path: a file, a folder, or a name on the hub; see :func:`records`.
        noun: what is read, for messages.
    Raises:
        InputError: something cannot be read; the message names the file and the place.
    """
    if not str(path).startswith(HUB):
        check_path(Path(path), noun)
    return _fields(path, noun)


def _fields(path: str | Path, noun: str, field: str | None = None, remedy: str = "") -> Iterator[Fields]:
    """Iterate over records: with their `field` and their `id` at least, or with all fields if `field` is None."""
    if str(path).startswith(HUB):
        return _from_hub(str(path))
    path = Path(path)
    readers = {"jsonl": _from_jsonl, "parquet": _from_parquet, "datasets": _from_datasets}
    kind = format_of(path)
    if kind not in readers:
        formats = FORMATS if field is not None else _FIELD_FORMATS
        raise InputError(f"{path}: cannot read {noun} from a file of this format; use {formats}")
    return readers[kind](path, field, remedy)


def format_of(path: Path) -> str | None:
    """Return txt, jsonl, parquet, datasets, or None, by the name of an existing file or folder."""
    if path.is_dir():
        return "datasets"
    kind = path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    packed = path.name.lower().endswith((".gz", ".zst"))
    return kind if kind in ("txt", "jsonl") or (kind == "parquet" and not packed) else None


def check_text(where: str, what: str, text: object) -> str:
    """Return a text that was read, if it is text that UTF-8 can encode.

    Args:
        where: the file and the place in it, for messages.
        what: what the text is, for messages.
        text: the text.
    Raises:
        InputError: it is not a string, or it holds an unpaired surrogate, as `"\\ud800"` does in JSON.
    """
    if not isinstance(text, str):
        raise InputError(f"{where}: {what} is not text but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: character {error.start} of {what} is half of a surrogate pair") from error
    return text


def _from_text(path: Path, whole: bool) -> Iterator[NumberedRecord]:
    texts = [whole_text(path)] if whole else lines(path)
    return (NumberedRecord(number, None, text) for number, text in enumerate(texts, 1))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object. One that has a key twice is refused, since readers disagree about what it means."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {_listed(key for key in found if keys.count(key) > 1)} is given twice")
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_object)


def _from_jsonl(path: Path, field: str | None, remedy: str) -> Iterator[Fields]:
    for number, line in enumerate(lines(path), 1):
        if not line.strip():
            continue
        try:
            record = _JSON.decode(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not JSON: {getattr(error, 'msg', error)}") from error
        if not isinstance(record, dict):
            wanted = "" if field is None else f" with a field {field!r}"
            raise InputError(f"{path}: line {number} is not an object{wanted}")
        yield Fields(f"line {number}", number, record)


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Turn any error of a library that reads a file into an InputError of one line."""
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise InputError(f"{what}: {reason}") from error


def _from_parquet(path: Path, field: str | None, remedy: str) -> Iterator[Fields]:
    import pyarrow.parquet

    with _reported(f"{path}: cannot be read"), open(path, "rb"):
        pass
    # Columns are read piece by piece, so that the size of a row group does not matter.
    with (
        _reported(f"{path}: not a Parquet file"),
        pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file,
    ):
        columns = _columns(path, file.schema_arrow.names, field, remedy)
        yield from _rows(path, file.iter_batches(batch_size=_ROWS, columns=columns))


def _from_datasets(path: Path, field: str | None, remedy: str) -> Iterator[Fields]:
    if (corpus := manifests.read(path, manifests.GENERATED)) is not None:
        manifests.check_complete(path, corpus)
    datasets = _import_datasets(path)
    check_stated_files(path)
    with _reported(f"{path}: not a folder of datasets; use {FORMATS}"):
        is_saved = any((path / name).exists() for name in _SAVED)
        found = datasets.load_from_disk(str(path)) if is_saved else _only_split(datasets, path)
    if isinstance(found, datasets.DatasetDict):
        first = path / next(iter(found), "train")
        raise InputError(f"{path}: holds the splits {_listed(found)}; give one of them, such as {first}")
    with _reported(f"{path}: cannot be read"):
        if found.column_names is not None:  # those of JSON and CSV are not known before they are read
            found = found.select_columns(_columns(path, found.column_names, field, remedy))
        yield from _rows(path, found.with_format("arrow").iter(batch_size=_ROWS))


def _only_split(datasets: ModuleType, path: Path) -> Any:
    """Return the data set in a folder of files, as a stream."""
    builder = datasets.load_dataset_builder(str(path))
    if builder.info.builder_name not in _TABLES:  # each line of a text file would be a row
        raise InputError(f"{path}: is a folder of {builder.info.builder_name} files; give the files themselves")
    splits = builder.as_streaming_dataset()
    if len(splits) > 1:
        raise InputError(f"{path}: holds the splits {_listed(splits)}; give the files of one of them")
    return next(iter(splits.values()))


def _columns(path: Path, names: list[str], field: str | None, remedy: str) -> list[str]:
    """Return the names of the columns to read: `field` and `id`, or all."""
    if field is not None and field not in names:
        raise InputError(f"{path}: no field {field!r}; it has {_listed(names)}; {remedy}")
    columns = [name for name in dict.fromkeys(names if field is None else (field, "id")) if name in names]
    for name in columns:
        if names.count(name) > 1:
            raise InputError(f"{path}: has {names.count(name)} columns named {name!r}; rename or drop all but one")
    return columns


def _listed(names: Iterable[object]) -> str:
    """Return the names of fields for a message: the first few, and the start of each."""
    found = [printable(str(name)[: _SHOWN_CHARACTERS + 1]) for name in names]
    short = [name if len(name) <= _SHOWN_CHARACTERS else f"{name[:_SHOWN_CHARACTERS]}..." for name in found]
    more = f" and {len(found) - _SHOWN_NAMES} more" if len(found) > _SHOWN_NAMES else ""
    return ", ".join(short[:_SHOWN_NAMES]) + more


def _rows(path: Path, batches: "Iterable[pyarrow.RecordBatch | pyarrow.Table]") -> Iterator[Fields]:
    """Iterate over the rows of Arrow tables."""
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            place = f"rows {number + 1} to {number + batch.num_rows}"
            raise InputError(f"{path}: a text in {place} is not UTF-8 from byte {error.start} on") from error
        for number, row in enumerate(rows, number + 1):  # noqa: B020
            yield Fields(f"row {number}", number, row)


def _from_hub(name: str) -> Iterator[Fields]:
    datasets = _import_datasets(name)
    repository, *chosen = name.removeprefix(HUB).split(":")
    if not _REPOSITORY.fullmatch(repository) or len(chosen) > 2:
        raise InputError(f"{name}: names no data set; use {_HUB_NAMES}")
    if os.path.isdir(repository):
        raise InputError(
            f"{name}: datasets would read {os.path.abspath(repository)} instead; give that path without {HUB}, or run "
            "the command in another folder"
        )
    split = chosen[-1] if chosen and chosen[-1] else "train"
    config = chosen[0] if len(chosen) == 2 else None
    with _reported(f"{name}: cannot be read from the hub"):  # no network, no such name, no such split, ...
        # trust_remote_code: datasets 3 asks on the terminal whether to run a data set's own code unless it is False
        found = datasets.load_dataset(repository, config, split=split, streaming=True, trust_remote_code=False)
        for number, record in enumerate(found, 1):
            yield Fields(f"row {number}", number, record)


def _import_datasets(path: str | Path) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'{path}: reading it needs datasets: pip install ".[datasets]"') from error
    return cast(ModuleType, datasets)


def _texts_of(path: str | Path, found: Iterable[Fields], field: str, remedy: str) -> Iterator[NumberedRecord]:
    """Iterate over the texts in a field of the records, and check them."""
    for place, number, record in found:
        if field not in record:
            raise InputError(f"{path}: {place} has no field {field!r}; it has {_listed(record)}; {remedy}")
        text = "" if record[field] is None else check_text(f"{path}: {place}", f"field {field!r}", record[field])
        yield NumberedRecord(number, own_id(f"{path}: {place}", record.get("id")), text)


def own_id(where: str, value: object) -> str | None:
    """Return a record's own id as text, or None if it is null, an empty string, or NaN, which is pandas' null.

    Args:
        where: the file and the place in it, for messages.
        value: its field "id".
    Raises:
        InputError: it is neither text nor a number.
    """
    if value is None or value == "" or value != value:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return check_text(where, "field 'id'", value)
