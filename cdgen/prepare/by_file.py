"""Splits by file: all documents of a file are in the same split."""

from collections.abc import Iterable
from typing import NamedTuple

from cdgen.errors import InputError
from cdgen.wording import counted

UNITS = ("document", "file")  # what may be assigned to a split as a whole; the first is the default


class File(NamedTuple):
    """A file whose documents stay together."""

    number: int
    order: bytes  # hash of its documents, by which files are ordered
    words: int  # more than 0


def held_out(source: str, files: list[File], test: float, seeds: float) -> tuple[list[int], list[int]]:
    """Choose the files of the test split and of the seeds.

    Files are ordered by their hashes. The test split takes them from one end until it holds its share of the words, and
    the seeds take them from the other end. A change of one share therefore does not move the other split.

    Args:
        source: name of the source, for messages.
        files: the source's files, in any order.
        test: the test split's share of the words, at least.
        seeds: share of the words that are held out as seeds, at least.
    Returns:
        The numbers of the files in the test split, and of those in the seeds.
    Raises:
        InputError: no file would be left to train on.
    """
    ordered = sorted(files, key=lambda file: file.order)
    total = sum(file.words for file in files)
    tested, seeding = _first(ordered, test * total), _first(reversed(ordered), seeds * total)
    if files and len(tested) + len(seeding) >= len(files):
        raise InputError(
            f"source {source}: has {counted(len(files), 'file')}, of which test = {test:g} takes {len(tested)} and "
            f"seeds = {seeds:g} takes {len(seeding)}, so that none is left to train on; give more or smaller files, "
            "smaller shares or another seed, or use split_by='document'"
        )
    return tested, seeding


def _first(files: Iterable[File], words: float) -> list[int]:
    """Return the numbers of the first files that hold this many words."""
    chosen, total = [], 0
    for file in files:
        if total >= words:
            break
        chosen.append(file.number)
        total += file.words
    return chosen
