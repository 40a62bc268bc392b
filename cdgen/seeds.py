"""Seeds: the prompts a corpus grows from, read from text, JSON lines, Parquet or a `datasets` folder."""

import gzip
import hashlib
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from cdgen.errors import InputError

_FORMATS = ".txt, .jsonl, .jsonl.gz, .parquet, or a folder written by datasets' save_to_disk"


@dataclass(frozen=True)
class Seed:
    """A prompt of a corpus: its name in the corpus, and its token ids."""

    id: str
    token_ids: list[int]


def read_seeds(paths, prompt_ids, *, field="text", prefix_tokens=None, chunk_words=None):
    """Read seeds from one or more files.

    Args:
        paths: .txt (a prompt a line), .jsonl, .jsonl.gz, .parquet, or folders of `datasets`; records may have an `id`.
        prompt_ids: function (text, name) -> list of token ids, as `ContrastiveLM.prompt_ids`.
        field: of the records, the one that holds the text.
        prefix_tokens: keep the first so many tokens; default all.
        chunk_words: cut documents into chunks of so many words or more, each a seed; then a .txt file is one document.
            A document of fewer words is dropped.
    Returns:
        (list of :class:`Seed`, number of empty or too short ones dropped)
    Raises:
        InputError: a file that cannot be read, by name and place; no seed left.
    """
    for name, value in (("prefix_tokens", prefix_tokens), ("chunk_words", chunk_words)):
        if value is not None and value < 1:
            raise InputError(f"{name} = {value}: must be 1 or more")
    seeds, dropped = [], 0
    paths = [Path(path) for path in paths]
    for path in paths:
        label = path.name if sum(other.name == path.name for other in paths) == 1 else str(path)
        for record, text in _records(path, field, whole=chunk_words is not None):
            name = f"{label}:{record}" if isinstance(record, int) else record
            pieces = [(name, text)] if chunk_words is None else _chunks(name, text, chunk_words)
            if not pieces or not text.strip():
                dropped += 1
                continue
            seeds += [Seed(name, prompt_ids(piece, f"seed {name}")[:prefix_tokens]) for name, piece in pieces]
    if not seeds:
        why = f"; {dropped} were empty{' or too short' if chunk_words else ''}" if dropped else ""
        raise InputError(f"seeds: none in {', '.join(map(str, paths))}{why}")
    return seeds, dropped


def fingerprint(seeds):
    """sha256 over the seeds' names and token ids, in order."""
    digest = hashlib.sha256()
    for seed in seeds:
        digest.update(json.dumps([seed.id, seed.token_ids]).encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def _chunks(name, text, size):
    """(name, chunk) pairs of `size` words each, the last with what is left over."""
    starts = [word.start() for word in re.finditer(r"\S+", text)]
    count = len(starts) // size
    ends = [starts[at * size] for at in range(1, count)] + [len(text)]
    return [(f"{name}#{at}", text[starts[at * size] : ends[at]].rstrip()) for at in range(count)]


def _records(path, field, whole):
    """(own id, or number from 1; text) of each record of a file."""
    if not path.exists():
        raise InputError(f"{path}: no such seeds file")
    if path.is_dir():
        return _from_datasets(path, field)
    name = path.name.lower()
    if name.endswith(".txt"):
        text = _decode(path, path.read_bytes())
        if whole:
            return [(1, text)]
        lines = text.split("\n")
        return enumerate((line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])), 1)
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _from_jsonl(path, field)
    if name.endswith(".parquet"):
        return _from_parquet(path, field)
    raise InputError(f"{path}: not a format of seeds; use {_FORMATS}")


def _decode(path, data):
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: byte {error.start} is not UTF-8; convert the file, as with iconv -t utf-8"
        ) from error


def _from_jsonl(path, field):
    data = path.read_bytes()
    if path.name.lower().endswith(".gz"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{path}: damaged gzip file: {error}") from error
    for number, line in enumerate(_decode(path, data).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}: line {number} is not JSON: {error.msg}") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}: line {number} is not an object with a field {field!r}")
        yield _record(path, f"line {number}", number, record, field)


def _from_parquet(path, field):
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        columns = [name for name in (field, "id") if name in names]
        if field not in columns:
            raise InputError(f"{path}: no field {field!r}; it has {', '.join(names)}; choose with --seed-field")
        number = 0
        for batch in file.iter_batches(columns=columns):
            for record in batch.to_pylist():
                number += 1
                yield _record(path, f"row {number}", number, record, field)
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error


def _from_datasets(path, field):
    try:
        import datasets
    except ImportError as error:
        raise InputError(f'{path}: is a folder; reading it needs datasets: pip install "cdgen[datasets]"') from error
    try:
        found = datasets.load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise InputError(f"{path}: not a folder of datasets; give {_FORMATS}") from error
    if isinstance(found, datasets.DatasetDict):
        raise InputError(f"{path}: holds the splits {', '.join(found)}; give one, as {path / next(iter(found))}")
    for number, record in enumerate(found, 1):
        yield _record(path, f"row {number}", number, record, field)


def _record(path, place, number, record, field):
    if field not in record:
        raise InputError(
            f"{path}: {place} has no field {field!r} but {', '.join(map(str, record))}; choose with --seed-field"
        )
    text, own = record[field], record.get("id")
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise InputError(f"{path}: {place}: field {field!r} is not text but {type(text).__name__}")
    return (number if own is None else str(own)), text
