"""Split texts of any language into sentences and words, without data files."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

# Characters that end a sentence when white space follows, and those of scripts that put no space between sentences.
_SPACED, _UNSPACED = ".!?…‼⁇⁈⁉؟۔।॥։።፧၊။", "。！？．｡"
_CLOSING = "\"'”’»›)]}」』】）"
_MARK = re.escape(_CLOSING)
# Right after the end of a sentence, “ and « close a quotation, as in German, unless no space separates sentences.
_END = re.compile(rf"[{re.escape(_SPACED)}]+[{_MARK}“«]*(?=\s)|[{_UNSPACED}]+[{_MARK}]*")
_FINISHED = re.compile(rf"[{re.escape(_SPACED)}{_UNSPACED}][{_MARK}“«]*$")
_PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
_LONGEST_ABBREVIATION = 5  # characters, without the full stop
_FEWEST_ABBREVIATIONS = 5  # minimum number of occurrences of a recognised abbreviation
_LONGEST_WORD = 30  # characters; longer ones on average mean that the script puts no spaces between words


class Sentence(NamedTuple):
    """A sentence of a document.

    Attributes:
        text: the sentence, in which each run of white space is one space.
        separator: what precedes it: "" at the start, " ", a blank line, or "" in scripts without spaces.
    """

    text: str
    separator: str

    @property
    def is_finished(self) -> bool:
        """Whether the sentence ends with punctuation, which a heading does not."""
        return bool(_FINISHED.search(self.text))


def abbreviations(texts: Iterable[str]) -> frozenset[str]:
    """Return the short words that are more often followed by a full stop than not, without the full stop.

    That is the main criterion of Kiss & Strunk (2006), "Unsupervised multilingual sentence boundary detection".
    """
    stopped, plain = Counter[str](), Counter[str]()
    for text in texts:
        for word in text.split():
            bare = word.strip(_CLOSING + "“„«‹([{,;:")
            if len(bare) <= _LONGEST_ABBREVIATION + 1:
                (stopped if bare.endswith(".") else plain)[bare.removesuffix(".")] += 1
    return frozenset(
        word
        for word, count in stopped.items()
        if any(map(str.isalpha, word)) and count >= _FEWEST_ABBREVIATIONS and count > plain[word]
    )


def sentences(text: str, abbreviated: frozenset[str] = frozenset()) -> list[Sentence]:
    """Split a document into sentences.

    A sentence ends at a blank line, at punctuation that ends sentences in its script, with the quotation marks and
    brackets after it, or at a full stop that does not follow an abbreviation and that no lower-case letter follows.

    Args:
        text: the document.
        abbreviated: words after which a full stop ends no sentence, see :func:`abbreviations`.
    """
    found: list[Sentence] = []
    for paragraph in _PARAGRAPH.split(text.strip()):
        line = " ".join(paragraph.split())
        start, separator = 0, "\n\n" if found else ""
        for match in _END.finditer(line):
            if not _is_end(line, start, match, abbreviated):
                continue
            found.append(Sentence(line[start : match.end()], separator))
            start = match.end()
            separator = " " if line[start : start + 1] == " " else ""
            start += len(separator)
        if start < len(line):
            found.append(Sentence(line[start:], separator))
    return found


def _is_end(line: str, start: int, match: re.Match[str], abbreviated: frozenset[str]) -> bool:
    """Return whether punctuation ends a sentence."""
    mark = match.group()
    following = line[match.end() :].lstrip(" \"'“„«‹([{")[:1]
    if mark[0] not in _UNSPACED and following.islower():
        return False
    if mark != ".":
        return True
    word = line[max(start, line.rfind(" ", 0, match.start()) + 1) : match.start()]
    return word.lstrip("\"'“„«‹([{") not in abbreviated


def words(text: str) -> tuple[list[str], str]:
    """Split a sentence into words; punctuation stays attached to them.

    Returns:
        (the words, the separator that joins them). The separator is " ". In scripts without spaces between words, it is
        "", and the words are characters with their combining marks.
    """
    found = text.split()
    if len(text) <= _LONGEST_WORD * len(found):
        return found, " "
    characters: list[str] = []
    for character in text:
        if characters and unicodedata.category(character)[0] == "M":
            characters[-1] += character
        else:
            characters.append(character)
    return characters, ""


def bare(word: str) -> str:
    """Return a word without the punctuation and symbols around it."""
    if word.isalnum():
        return word
    start, end = 0, len(word)
    while start < end and unicodedata.category(word[start])[0] in "PS":
        start += 1
    while end > start and unicodedata.category(word[end - 1])[0] in "PS":
        end -= 1
    return word[start:end]
