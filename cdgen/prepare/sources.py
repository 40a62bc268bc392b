"""Sources of corpora: which files to read, and what a document is in them."""

import glob
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from cdgen.corpus.records import HUB, check_text, format_of, records
from cdgen.corpus.text_files import check_path, lines
from cdgen.errors import InputError
from cdgen.values import FLOAT32_MAX, INT64_MAX, integer, real

WAYS = ("file", "blank", "heading", "record")
HEADING = r"[#\s]*(CHAPTER|Chapter)\s+([IVXLCDM]+|\d+)\b|= = = .* = = =$"
_KEYS = ("by", "heading", "separator", "lines", "field", "words", "weight")


@dataclass(frozen=True)
class Source:
    """Files, and what a document is in them. Leading and trailing space of a document is removed.

    Args:
        name: name of the source, in the column `source` and in the documents' ids.
        paths: files, glob patterns (`books/*.txt`), folders that datasets can load, or `hub:owner/name:split`; one or
            several.
        by: what a document is. "file": a whole file; "blank": text between blank lines; "heading": text from a line
            that matches `heading`, which is kept, to the next one; "record": a record of .jsonl, .parquet or datasets.
            Default: "record" for these formats, "heading" if `heading` is given, else "file".
        heading: regular expression, matched from the start of a line. Default: :data:`HEADING`.
        separator: regular expression that matches a whole line between documents, which is dropped.
        lines: number of lines per document.
        field: name of the records' field that holds the text.
        words: word budget. Documents are taken in the order of a hash of their text until they have this many words.
        weight: sources with a weight give words in these proportions, as many as the scarcest of them allows.
        read: function (path) -> iterable of (id, text), in place of all other ways to read a file.
    Raises:
        InputError: a value is impossible.
    """

    name: str
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
    by: str | None = None
    heading: str | None = None
    separator: str | None = None
    lines: int | None = None
    field: str = "text"
    words: float | None = None
    weight: float | None = None
    read: Callable[[str], Iterable[tuple[str | int, str]]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[\w.+-]+", self.name):
            raise InputError(f"source {self.name!r}: a name consists of letters, digits and . _ + -")
        object.__setattr__(self, "paths", self.patterns)
        if self.by not in (None, *WAYS):
            raise InputError(f"source {self.name}: by = {self.by!r}: use {', '.join(WAYS)}")
        if self.by == "heading" and self.heading is None:
            object.__setattr__(self, "heading", HEADING)
        if not isinstance(self.field, str) or not self.field:
            raise InputError(f"source {self.name}: field = {self.field!r}: give the name of a field")
        if self.read is not None and not callable(self.read):
            raise InputError(f"source {self.name}: read = {self.read!r}: is not a function")
        self._check_one_way()
        if self.lines is not None:
            lines = integer(f"source {self.name}: lines", self.lines, 1, INT64_MAX)
            object.__setattr__(self, "lines", lines)
        for name in ("words", "weight"):
            value = getattr(self, name)
            if value is not None:
                value = real(f"source {self.name}: {name}", value, 0, FLOAT32_MAX)
                object.__setattr__(self, name, value)
                if not value:
                    raise InputError(f"source {self.name}: {name} = {value}: must be more than 0")
        if self.words is not None and self.weight is not None:
            raise InputError(f"source {self.name}: words and weight are given; a source has one or the other")

    def _check_one_way(self) -> None:
        given = [name for name in ("heading", "separator", "lines") if getattr(self, name) is not None]
        if len(given) > 1 or (given and self.by not in (None, given[0])):
            both = " and ".join([*([f"by={self.by}"] if self.by not in (None, "heading") else []), *given])
            raise InputError(f"source {self.name}: {both} are given; a document is one or the other")
        for name in ("heading", "separator"):
            pattern = getattr(self, name)
            if pattern is not None and not isinstance(pattern, str):
                raise InputError(f"source {self.name}: {name} = {pattern!r}: is not a regular expression in a string")
            try:
                re.compile(pattern or "")
            except (re.error, OverflowError, RecursionError) as error:
                raise InputError(f"source {self.name}: {name} is not a regular expression: {error}") from error

    @property
    def patterns(self) -> tuple[str, ...]:
        """`paths` as a tuple of strings.

        Raises:
            InputError: `paths` is empty, or holds something that is neither a string nor a path.
        """
        given = self.paths if isinstance(self.paths, Sequence) and not isinstance(self.paths, str) else [self.paths]
        wrong = next((type(path).__name__ for path in given if not isinstance(path, str | os.PathLike)), None)
        if wrong or not given:
            raise InputError(f"source {self.name}: paths: give a path or a list of paths, not {wrong or 'none'}")
        return tuple(os.fspath(path) for path in given)


def listed_sources(given: Source | str | os.PathLike[str] | Iterable[Source | str | os.PathLike[str]]) -> list[Source]:
    """Return sources as a list, sorted by name; strings and paths are parsed.

    Raises:
        InputError: there are no sources, one has another type or cannot be parsed, or two have the same name.
    """
    several: Iterable[object] = (
        given if isinstance(given, Iterable) and not isinstance(given, str | os.PathLike) else [given]
    )
    sources = []
    for one in several:
        if not isinstance(one, Source | str | os.PathLike):
            raise InputError(f"sources: give a Source, a string or a path, or a list of them, not {type(one).__name__}")
        sources.append(one if isinstance(one, Source) else parse_source(os.fspath(one)))
    if not sources:
        raise InputError("no sources given")
    sources.sort(key=lambda source: source.name)
    for one, other in pairwise(sources):
        if one.name == other.name:
            raise InputError(f"source {one.name}: is given twice; name each one, as in NAME=PATH")
    return sources


def parse_source(text: str) -> Source:
    """Parse `[NAME=]PATH[,key=value]...`; `heading` and `separator` come last, since they may contain commas.

    Raises:
        InputError: a key is unknown or given twice, or a value is not a number.
    """
    first, *options = re.split(r",(?=[A-Za-z_]+=)", text)
    named = re.match(r"([\w.+-]+)=(.+)", first)
    name, path = named.groups() if named else (_name(first), first)
    values: dict[str, Any] = {}
    while options:
        key, value = options.pop(0).split("=", 1)
        if key not in _KEYS:
            raise InputError(f"source {name}: no setting {key!r}; use {', '.join(_KEYS)}")
        if key in values:
            raise InputError(f"source {name}: {key} is given twice; leave one of them out")
        if key in ("heading", "separator"):
            values[key], options = ",".join([value, *options]), []
        else:
            values[key] = _number(name, key, value) if key in ("words", "weight", "lines") else value
    return Source(name, path, **values)


def _name(path: str) -> str:
    """Return a name for a path that has none: the file's, or its folder's if the file name is a pattern."""
    for part in reversed(path.removeprefix(HUB).partition(":")[0].split("/")):
        if name := re.sub(r"[^\w+-]+", "_", part.partition(".")[0]).strip("_"):
            return name
    return "text"


def _number(name: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"source {name}: {key}={value}: is not a number") from None
    if key == "lines" and not number.is_integer():
        raise InputError(f"source {name}: lines={value}: is not a whole number")
    return int(number) if key == "lines" else number


def files(source: Source) -> list[str]:
    """Return the source's files, sorted; hub names are returned as they are.

    Raises:
        InputError: a path or pattern matches nothing, or something that cannot be read as a file.
    """
    found = []
    for path in map(os.path.expanduser, source.patterns):
        if path.startswith(HUB) or os.path.exists(path):
            found.append(path)
        elif matches := glob.glob(path, recursive=True):
            found += matches
        else:
            raise InputError(f"source {source.name}: {path}: no such file")
    for path in found:
        if not path.startswith(HUB):
            check_path(Path(path))
    return sorted(set(found))


def label(path: str, paths: list[str]) -> str:
    """Return a file's name in the ids of its documents, with as much of its path as makes it unique in its source."""
    if path.startswith(HUB):
        return path
    folders = {os.path.dirname(other) for other in paths if not other.startswith(HUB)}
    if len({os.path.isabs(folder) for folder in folders}) > 1:
        path, folders = os.path.abspath(path), {os.path.abspath(folder) for folder in folders}
    return os.path.relpath(path, os.path.commonpath(folders) or ".") if len(folders) > 1 else os.path.basename(path)


def documents(source: Source, path: str) -> Iterable[tuple[str | int, str]]:
    """Iterate over (own id or number from 1, text) of the documents in one of the source's files, including empty ones.

    Raises:
        InputError: something cannot be read; the message names the file and the place.
    """
    if source.read is not None:
        return _read_by_function(source, path)
    format = "hub" if path.startswith(HUB) else format_of(Path(path))
    by = next((name for name in ("heading", "separator", "lines") if getattr(source, name) is not None), source.by)
    if format in ("txt", None):
        if by == "record":
            raise InputError(f"source {source.name}: {path}: a text file has no records; use by=file, blank or heading")
        if source.field != "text" and (by is not None or format == "txt"):
            raise InputError(f"source {source.name}: {path}: a text file has no fields; leave out field={source.field}")
        if by is not None or format == "txt":
            return _documents_of_text(source, by, lines(path))
    elif by not in (None, "record"):
        raise InputError(f"source {source.name}: {path}: each of its records is a document; {by} is for text files")
    return records(path, source.field)


def _read_by_function(source: Source, path: str) -> Iterator[tuple[str | int, str]]:
    """Iterate over the documents that the function `source.read` yields, and check them."""
    assert source.read is not None
    for found in source.read(path):
        if not isinstance(found, tuple) or len(found) != 2:
            raise InputError(f"source {source.name}: {path}: read gave {type(found).__name__}, not (id, text)")
        name = check_text(f"{path}: a document", "its id", str(found[0]))
        yield found[0], check_text(f"{path}: document {name}", "its text", found[1])


def _documents_of_text(source: Source, by: str | None, found: Iterator[str]) -> Iterator[tuple[int, str]]:
    groups: Iterator[Iterable[str]]
    if by in (None, "file"):
        groups = iter([found])
    elif by == "blank":
        groups = _between(found, lambda line: not line.strip())
    elif source.separator is not None:
        separator = re.compile(source.separator)
        groups = _between(found, lambda line: separator.fullmatch(line.strip()) is not None)
    elif source.lines is not None:
        groups = _of_length(found, source.lines)
    else:
        heading = re.compile(source.heading or HEADING)
        groups = _from_headings(found, lambda line: heading.match(line) is not None)
    return ((number, "\n".join(group)) for number, group in enumerate(groups, 1))


def _between(found: Iterable[str], ends: Callable[[str], bool]) -> Iterator[list[str]]:
    """Group the lines between those that `ends` accepts."""
    group: list[str] = []
    for line in found:
        if ends(line):
            if group:
                yield group
            group = []
        else:
            group.append(line)
    if group:
        yield group


def _of_length(found: Iterator[str], length: int) -> Iterator[list[str]]:
    while group := list(islice(found, length)):
        yield group


def _from_headings(found: Iterable[str], begins: Callable[[str], bool]) -> Iterator[list[str]]:
    """Group the lines from each one that `begins` accepts."""
    group: list[str] = []
    for line in found:
        if begins(line) and group:
            yield group
            group = []
        group.append(line)
    if group:
        yield group
