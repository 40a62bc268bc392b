"""Stream records from text files, JSON lines, Parquet, `datasets` folders and the hub, in bounded memory."""

import codecs
import contextlib
import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

from cdgen.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow

FORMATS = ".txt, .jsonl (both also .gz or .zst), .parquet, or a folder written by datasets' save_to_disk"
HUB = "hub:"

_BLOCK = 1 << 20  # bytes per read
_ROWS = 256  # rows of Parquet and datasets that are in memory at once
_ENCODINGS = (  # by byte-order mark; UTF-32 comes before UTF-16, since its mark starts with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


class Record(NamedTuple):
    """A text and its name: the record's own `id`, or its number in the file, from 1."""

    id: str | int
    text: str


class _Fields(NamedTuple):
    """A record with all its fields, and where it is in its file, for messages."""

    place: str
    number: int
    fields: dict[str, Any]


def records(
    path: str | Path,
    field: str = "text",
    *,
    whole: bool = True,
    remedy: str = "choose one with field=NAME",
    noun: str = "text",
    utf8_only: bool = False,
) -> Iterator[Record]:
    """Iterate over the records of a file.

    Args:
        path: a file or folder, see :data:`FORMATS`; or `hub:owner/name` or `hub:owner/name:split` (default: train).
            Text is UTF-8, or UTF-16 or UTF-32 if it starts with their byte-order mark, which is removed.
        field: name of the text's field in JSON lines, Parquet and datasets. Records may also have an `id`.
        whole: if True a .txt file is one record, else each of its lines is.
        remedy: how to choose another field, for messages.
        noun: what is read, for messages.
        utf8_only: accept no other encoding.
    Raises:
        InputError: something cannot be read; the message names the file and the place.
    """
    if str(path).startswith(HUB):
        return _texts_of(str(path), _from_hub(str(path)), field, remedy)
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such {noun} file" if noun != "text" else f"{path}: no such file")
    kind = format_of(path)
    if kind == "txt":
        return _from_text(path, whole, utf8_only)
    if kind == "jsonl":
        return _texts_of(path, _from_jsonl(path, field, utf8_only), field, remedy)
    if kind == "parquet":
        return _texts_of(path, _from_parquet(path, field, remedy), field, remedy)
    if kind == "datasets":
        return _texts_of(path, _from_datasets(path, field, remedy), field, remedy)
    raise InputError(f"{path}: cannot read {noun} from a file of this format; use {FORMATS}")


def format_of(path: Path) -> str | None:
    """Return txt, jsonl, parquet, datasets, or None, by the name of an existing file or folder."""
    if path.is_dir():
        return "datasets"
    kind = path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    packed = path.name.lower().endswith((".gz", ".zst"))
    return kind if kind in ("txt", "jsonl") or (kind == "parquet" and not packed) else None


def lines(path: str | Path, utf8_only: bool = False) -> Iterator[str]:
    """Iterate over the lines of a text file, compressed or not, without their ends ("\\n" or "\\r\\n")."""
    pieces: list[str] = []  # parts of a line that is longer than a block
    for text in _decoded(Path(path), utf8_only):
        *finished, rest = text.split("\n")
        if finished:
            yield "".join([*pieces, finished[0]]).removesuffix("\r")
            for line in finished[1:]:
                yield line.removesuffix("\r")
            pieces = []
        pieces.append(rest)
    if last := "".join(pieces):
        yield last.removesuffix("\r")


def _from_text(path: Path, whole: bool, utf8_only: bool) -> Iterator[Record]:
    if whole:
        yield Record(1, "".join(_decoded(path, utf8_only)))
    else:
        yield from (Record(number, line) for number, line in enumerate(lines(path, utf8_only), 1))


def _decoded(path: Path, utf8_only: bool) -> Iterator[str]:
    """Iterate over a file's text in pieces. Errors name the byte in the decompressed file."""
    with _opened(path) as file:
        block = file.read(_BLOCK)
        marks = _ENCODINGS[:1] if utf8_only else _ENCODINGS
        mark, encoding = next((pair for pair in marks if block.startswith(pair[0])), (b"", "utf-8"))
        decoder, read, block = codecs.getincrementaldecoder(encoding)(), len(mark), block[len(mark) :]
        more = True
        while more:
            start = read - len(decoder.getstate()[0])  # the first byte of a character that the last block cut
            following = file.read(_BLOCK)
            more = bool(following)
            try:
                yield decoder.decode(block, final=not more)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: byte {start + error.start} is not {encoding[:6].rstrip('-').upper()}; "
                    "convert the file, for example with iconv -t utf-8"
                ) from error
            read, block = read + len(block), following


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file as a binary stream, decompressed. Damage raises InputError, also while the stream is read."""
    if path.name.lower().endswith(".zst"):
        import pyarrow

        with open(path, "rb") as packed:
            try:
                with pyarrow.input_stream(packed, compression="zstd") as stream:
                    yield stream
            except OSError as error:
                if error.errno:
                    raise
                raise InputError(f"{path}: damaged zstd file: {first_line(error)}") from error
        return
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as stream:
            yield cast(BinaryIO, stream)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file: {first_line(error)}") from error


def _from_jsonl(path: Path, field: str, utf8_only: bool) -> Iterator[_Fields]:
    for number, line in enumerate(lines(path, utf8_only), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not JSON: {getattr(error, 'msg', error)}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is not an object with a field {field!r}")
        yield _Fields(f"line {number}", number, record)


def _from_parquet(path: Path, field: str, remedy: str) -> Iterator[_Fields]:
    import pyarrow
    import pyarrow.parquet

    try:
        # buffered: columns are read as they are needed, however large the row group is
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BLOCK, pre_buffer=False) as file:
            columns = _columns(path, file.schema_arrow.names, field, remedy)
            yield from _rows(path, (batch for batch in file.iter_batches(batch_size=_ROWS, columns=columns)))
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise InputError(f"{path}: not a Parquet file: {first_line(error)}") from error


def _from_datasets(path: Path, field: str, remedy: str) -> Iterator[_Fields]:
    datasets = _import_datasets(path)
    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: not a folder of datasets; use {FORMATS}") from error
    if isinstance(found, datasets.DatasetDict):
        first = path / next(iter(found))
        raise InputError(f"{path}: holds the splits {', '.join(found)}; give one of them, such as {first}")
    found = found.select_columns(_columns(path, found.column_names, field, remedy)).with_format("arrow")
    yield from _rows(path, found.iter(batch_size=_ROWS))


def _columns(path: Path, names: list[str], field: str, remedy: str) -> list[str]:
    if field not in names:
        raise InputError(f"{path}: no field {field!r}; it has {', '.join(names)}; {remedy}")
    return [name for name in dict.fromkeys((field, "id")) if name in names]


def _rows(path: Path, batches: "Iterable[pyarrow.RecordBatch | pyarrow.Table]") -> Iterator[_Fields]:
    """Iterate over the rows of Arrow tables."""
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            place = f"rows {number + 1} to {number + batch.num_rows}"
            raise InputError(f"{path}: a text in {place} is not UTF-8 from byte {error.start} on") from error
        for number, row in enumerate(rows, number + 1):  # noqa: B020
            yield _Fields(f"row {number}", number, row)


def _from_hub(name: str) -> Iterator[_Fields]:
    datasets = _import_datasets(name)
    repository, _, split = name.removeprefix(HUB).partition(":")
    try:
        for number, record in enumerate(datasets.load_dataset(repository, split=split or "train", streaming=True), 1):
            yield _Fields(f"row {number}", number, record)
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such name, no such split, ...
        raise InputError(f"{name}: cannot be read from the hub: {first_line(error)}") from error


def _import_datasets(path: str | Path) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'{path}: reading it needs datasets: pip install "cdgen[datasets]"') from error
    return cast(ModuleType, datasets)


def _texts_of(path: str | Path, found: Iterable[_Fields], field: str, remedy: str) -> Iterator[Record]:
    """Iterate over the texts in a field of the records, and check them."""
    for place, number, record in found:
        if field not in record:
            raise InputError(f"{path}: {place} has no field {field!r}; it has {', '.join(map(str, record))}; {remedy}")
        text, own = record[field], record.get("id")
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise InputError(f"{path}: {place}: field {field!r} is not text but {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # for example \ud800 alone in JSON
            raise InputError(
                f"{path}: {place}: character {error.start} of field {field!r} is half of a surrogate pair"
            ) from error
        yield Record(number if own is None else str(own), text)
