"""Records of text, one at a time and never a whole file in memory: text, JSON lines, Parquet, `datasets`, the hub."""

import codecs
import contextlib
import gzip
import json
import zlib
from pathlib import Path

from cdgen.errors import InputError

FORMATS = ".txt, .jsonl (both also .gz or .zst), .parquet, or a folder written by datasets' save_to_disk"
HUB = "hub:"

_BLOCK = 1 << 20  # bytes read at once
_ROWS = 256  # of Parquet and datasets, taken into memory at once
_ENCODINGS = (  # by byte-order mark; UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


def records(path, field="text", *, whole=True, flag="--field", noun="text", utf8_only=False):
    """Iterate over the (own id, or number from 1; text) of each record of a file.

    Args:
        path: see :data:`FORMATS`, or `hub:owner/name` or `hub:owner/name:split` (default: train). Text is UTF-8, or
            UTF-16 or UTF-32 where it begins with their byte-order mark, which is not part of the text.
        field: of JSON lines, Parquet and datasets, the one that holds the text. Records may have an `id`.
        whole: a .txt file is one record, else each of its lines is.
        flag: the command line's option for `field`, and `noun`: what is read, for messages.
        utf8_only: no other encoding.
    Raises:
        InputError: what cannot be read, by file and place.
    """
    if str(path).startswith(HUB):
        return _checked(str(path), _from_hub(str(path)), field, flag)
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such {noun} file" if noun != "text" else f"{path}: no such file")
    kind = format_of(path)
    if kind == "txt":
        return _from_text(path, whole, utf8_only)
    if kind == "jsonl":
        return _checked(path, _from_jsonl(path, field, utf8_only), field, flag)
    if kind == "parquet":
        return _checked(path, _from_parquet(path, field, flag), field, flag)
    if kind == "datasets":
        return _checked(path, _from_datasets(path, field, flag), field, flag)
    raise InputError(f"{path}: not a format of {noun}; use {FORMATS}")


def format_of(path):
    """txt, jsonl, parquet, datasets, or None, by the name of a file that is there."""
    if path.is_dir():
        return "datasets"
    kind = path.name.lower().removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
    packed = path.name.lower().endswith((".gz", ".zst"))
    return kind if kind in ("txt", "jsonl") or (kind == "parquet" and not packed) else None


def lines(path, utf8_only=False):
    """Iterate over the lines of a text file, packed or not, without their ends ("\\n" or "\\r\\n")."""
    pieces = []  # of a line longer than a block
    for text in _texts(Path(path), utf8_only):
        *finished, rest = text.split("\n")
        if finished:
            yield "".join([*pieces, finished[0]]).removesuffix("\r")
            for line in finished[1:]:
                yield line.removesuffix("\r")
            pieces = []
        pieces.append(rest)
    if last := "".join(pieces):
        yield last.removesuffix("\r")


def _from_text(path, whole, utf8_only):
    if whole:
        yield 1, "".join(_texts(path, utf8_only))
    else:
        yield from enumerate(lines(path, utf8_only), 1)


def _texts(path, utf8_only):
    """The text of a file in pieces; what cannot be decoded is told by its byte in the file, unpacked."""
    with _opened(path) as file:
        block = file.read(_BLOCK)
        marks = _ENCODINGS[:1] if utf8_only else _ENCODINGS
        mark, encoding = next((pair for pair in marks if block.startswith(pair[0])), (b"", "utf-8"))
        decoder, read, block = codecs.getincrementaldecoder(encoding)(), len(mark), block[len(mark) :]
        more = True
        while more:
            start = read - len(decoder.getstate()[0])  # bytes of a character begun in the block before
            following = file.read(_BLOCK)
            more = bool(following)
            try:
                yield decoder.decode(block, final=not more)
            except UnicodeDecodeError as error:
                raise InputError(
                    f"{path}: byte {start + error.start} is not {encoding[:6].rstrip('-').upper()}; "
                    "convert the file, as with iconv -t utf-8"
                ) from error
            read, block = read + len(block), following


@contextlib.contextmanager
def _opened(path):
    """A binary stream of a file, unpacked; damage is told whenever it is met."""
    if path.name.lower().endswith(".zst"):
        import pyarrow

        with open(path, "rb") as packed:
            try:
                with pyarrow.input_stream(packed, compression="zstd") as stream:
                    yield stream
            except OSError as error:
                if error.errno:
                    raise
                raise InputError(f"{path}: damaged zstd file: {error}") from error
        return
    try:
        with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rb") as stream:
            yield stream
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise InputError(f"{path}: damaged gzip file: {error}") from error


def _from_jsonl(path, field, utf8_only):
    for number, line in enumerate(lines(path, utf8_only), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: line {number} is not JSON: {getattr(error, 'msg', error)}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is not an object with a field {field!r}")
        yield f"line {number}", number, record


def _from_parquet(path, field, flag):
    import pyarrow
    import pyarrow.parquet

    try:
        # buffered: a column of a row group is read as it is needed, however large the group
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BLOCK, pre_buffer=False) as file:
            columns = _columns(path, file.schema_arrow.names, field, flag)
            yield from _rows(path, (batch for batch in file.iter_batches(batch_size=_ROWS, columns=columns)))
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None):
            raise
        raise InputError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error


def _from_datasets(path, field, flag):
    datasets = _import_datasets(path)
    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: not a folder of datasets; give {FORMATS}") from error
    if isinstance(found, datasets.DatasetDict):
        raise InputError(f"{path}: holds the splits {', '.join(found)}; give one, as {path / next(iter(found))}")
    found = found.select_columns(_columns(path, found.column_names, field, flag)).with_format("arrow")
    yield from _rows(path, found.iter(batch_size=_ROWS))


def _columns(path, names, field, flag):
    if field not in names:
        raise InputError(f"{path}: no field {field!r}; it has {', '.join(names)}; choose with {flag}")
    return [name for name in dict.fromkeys((field, "id")) if name in names]


def _rows(path, batches):
    """(place, number, record) of each row of Arrow tables."""
    number = 0
    for batch in batches:
        try:
            rows = batch.to_pylist()
        except UnicodeDecodeError as error:
            place = f"rows {number + 1} to {number + batch.num_rows}"
            raise InputError(f"{path}: a text of {place} is not UTF-8, from its byte {error.start}") from error
        for number, row in enumerate(rows, number + 1):  # noqa: B020
            yield f"row {number}", number, row


def _from_hub(name):
    datasets = _import_datasets(name)
    repository, _, split = name.removeprefix(HUB).partition(":")
    try:
        for number, record in enumerate(datasets.load_dataset(repository, split=split or "train", streaming=True), 1):
            yield f"row {number}", number, record
    except (OSError, ValueError, RuntimeError) as error:  # no network, no such name, no such split, ...
        raise InputError(f"{name}: cannot be read from the hub: {str(error).strip().splitlines()[0]}") from error


def _import_datasets(path):
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'{path}: reading it needs datasets: pip install "cdgen[datasets]"') from error
    return datasets


def _checked(path, found, field, flag):
    """(id or number, text) of (place, number, record) triples."""
    for place, number, record in found:
        if field not in record:
            raise InputError(
                f"{path}: {place} has no field {field!r} but {', '.join(map(str, record))}; choose with {flag}"
            )
        text, own = record[field], record.get("id")
        if text is None:
            text = ""
        if not isinstance(text, str):
            raise InputError(f"{path}: {place}: field {field!r} is not text but {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:  # JSON's \ud800 alone
            raise InputError(
                f"{path}: {place}: character {error.start} of field {field!r} is half of a surrogate pair"
            ) from error
        yield (number if own is None else str(own)), text
