"""Sources of a corpus: which files, and what a document of them is."""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cdgen.corpus.records import HUB, format_of, lines, records
from cdgen.errors import InputError

WAYS = ("file", "blank", "heading", "record")
HEADING = r"[#\s]*(CHAPTER|Chapter)\s+([IVXLCDM]+|\d+)\b|= = = .* = = =$"
_KEYS = ("by", "heading", "separator", "lines", "field", "words", "weight")


@dataclass(frozen=True)
class Source:
    """Files and what a document of them is. Text at either end of a document that is only space is left out.

    Args:
        name: in the column `source` and in the documents' ids.
        paths: files, glob patterns (`books/*.txt`), folders that datasets' save_to_disk wrote, `hub:owner/name:split`.
        by: what a document is. "file": a whole file; "blank": what stands between blank lines; "heading": what a line
            that matches `heading` begins, which stays; "record": a record of .jsonl, .parquet or datasets. Default:
            "record" for these, "heading" where `heading` is given, else "file".
        heading: regular expression, matched from the start of a line. Default: :data:`HEADING`.
        separator: regular expression of the whole lines between documents, which do not stay.
        lines: so many lines are a document.
        field: of records, the one that holds the text.
        words: take documents of at most so many words, drawn by the hash of their text.
        weight: sources with a weight give words in these proportions, as many as the scarcest of them allows.
        read: function (path) -> iterable of (id, text), instead of all this.
    Raises:
        InputError: a value that cannot be.
    """

    name: str
    paths: tuple[str, ...]
    by: str | None = None
    heading: str | None = None
    separator: str | None = None
    lines: int | None = None
    field: str = "text"
    words: float | None = None
    weight: float | None = None
    read: Callable | None = None

    def __post_init__(self):
        object.__setattr__(self, "paths", (self.paths,) if isinstance(self.paths, str) else tuple(self.paths))
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise InputError(f"source {self.name!r}: a name is letters, digits and . _ + -")
        if self.by not in (None, *WAYS):
            raise InputError(f"source {self.name}: by = {self.by!r}: use {', '.join(WAYS)}")
        if self.by == "heading" and self.heading is None:
            object.__setattr__(self, "heading", HEADING)
        given = [name for name in ("heading", "separator", "lines") if getattr(self, name) is not None]
        if len(given) > 1 or (given and self.by not in (None, given[0])):
            both = " and ".join([*([f"by={self.by}"] if self.by not in (None, "heading") else []), *given])
            raise InputError(f"source {self.name}: {both} are given; a document is one or the other")
        for name in ("heading", "separator"):
            try:
                re.compile(getattr(self, name) or "")
            except re.error as error:
                raise InputError(f"source {self.name}: {name} is not a regular expression: {error}") from error
        for name in ("words", "weight", "lines"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"source {self.name}: {name} = {value}: must be more than 0")
        if self.words is not None and self.weight is not None:
            raise InputError(f"source {self.name}: words and weight are given; a source has one or the other")


def parse_source(text):
    """A :class:`Source` of a command line's `[NAME=]PATH[,key=value]...`; `heading` and `separator` come last.

    Raises:
        InputError: a key that there is not, or a value that is not a number.
    """
    first, *options = re.split(r",(?=[A-Za-z_]+=)", text)
    named = re.match(r"([\w.+-]+)=(.+)", first)
    name, path = named.groups() if named else (_name(first), first)
    values = {}
    while options:
        key, value = options.pop(0).split("=", 1)
        if key not in _KEYS:
            raise InputError(f"source {name}: no setting {key!r}; use {', '.join(_KEYS)}")
        if key in ("heading", "separator"):  # may hold commas
            value, options = ",".join([value, *options]), []
        elif key in ("words", "weight", "lines"):
            value = _number(name, key, value)
        values[key] = value
    return Source(name, path, **values)


def _name(path):
    """A name for a path that is given without one: the file's, or its folder's where the file is a pattern."""
    for part in reversed(path.removeprefix(HUB).partition(":")[0].split("/")):
        if name := re.sub(r"[^\w+-]+", "_", part.partition(".")[0]).strip("_"):
            return name
    return "text"


def _number(name, key, value):
    try:
        number = float(value)
    except ValueError:
        raise InputError(f"source {name}: {key}={value}: is not a number") from None
    if key == "lines" and number != int(number):
        raise InputError(f"source {name}: lines={value}: is not a whole number")
    return int(number) if key == "lines" else number


def files(source):
    """The source's files, sorted: strings, hub names as they are.

    Raises:
        InputError: a path or pattern that matches nothing.
    """
    found = []
    for path in source.paths:
        if path.startswith(HUB) or os.path.exists(path):
            found.append(path)
        elif matches := glob.glob(path, recursive=True):
            found += matches
        else:
            raise InputError(f"source {source.name}: {path}: no such file")
    return sorted(set(found))


def label(path, paths):
    """How a file is named in the ids of its documents: from where the paths of its source part, or its name."""
    if path.startswith(HUB):
        return path
    folders = {os.path.dirname(other) for other in paths if not other.startswith(HUB)}
    return os.path.relpath(path, os.path.commonpath(folders) or ".") if len(folders) > 1 else os.path.basename(path)


def documents(source, path):
    """Iterate over (own id, or number from 1; text) of the documents of one of the source's files, empty ones too.

    Raises:
        InputError: what cannot be read, by file and place.
    """
    if source.read is not None:
        return source.read(path)
    is_text = not path.startswith(HUB) and format_of(Path(path)) in ("txt", None)
    by = next((name for name in ("heading", "separator", "lines") if getattr(source, name) is not None), source.by)
    if not is_text and by not in (None, "record"):
        raise InputError(f"source {source.name}: {path}: its documents are its records; {by} is for text")
    if is_text and by == "record":
        raise InputError(f"source {source.name}: {path}: a text has no records; use by=file, blank or heading")
    if by in (None, "record") and (not is_text or format_of(Path(path)) is None):
        return records(path, source.field, flag="field=NAME")
    found = lines(path)
    if by in (None, "file"):
        groups = iter([found])
    elif by == "blank":
        groups = _between(found, lambda line: not line.strip())
    elif by == "separator":
        groups = _between(found, lambda line, matches=re.compile(source.separator).fullmatch: matches(line.strip()))
    elif by == "lines":
        groups = iter(lambda: list(islice(found, source.lines)), [])
    else:
        groups = _from_headings(found, re.compile(source.heading).match)
    return ((number, "\n".join(group)) for number, group in enumerate(groups, 1))


def _between(found, ends):
    group = []
    for line in found:
        if ends(line):
            if group:
                yield group
            group = []
        else:
            group.append(line)
    if group:
        yield group


def _from_headings(found, begins):
    group = []
    for line in found:
        if begins(line) and group:
            yield group
            group = []
        group.append(line)
    if group:
        yield group
