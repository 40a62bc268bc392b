"""Which documents a report shows: the same fifty seeds of all generated corpora, and fifty documents of any other."""

import hashlib
import heapq
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from cdgen.corpus.records import HUB
from cdgen.corpus.seeds import read_texts
from cdgen.errors import CorpusError, InputError
from cdgen.evaluation.corpus_stats.corpus_stats import find_text
from cdgen.report import seed_rows
from cdgen.report.corpora import params_of
from cdgen.report.document_content import Column, Document, Entry
from cdgen.report.names import Names
from cdgen.report.parts import TEXT, Part, of_kind, reason
from cdgen.report.roles import pair_of
from cdgen.storage import manifest as manifests

log = logging.getLogger("cdgen")

COUNT = 50  # documents per corpus
MOST_CHARACTERS = 4000  # characters of a document that are shown
_COLUMNS = ("text", "token_ids", "prompt_length", "seed_id", "finish_reason")
_START_WORDS, _START_CHARACTERS = 12, 80  # beginning of a document in the list

Place: TypeAlias = tuple[int, int]  # indices of an entry and of a document in it


@dataclass(frozen=True)
class Source:
    """What there is to explain in a document.

    Attributes:
        token_ids: the tokens of a generated document; of a text, those that it should begin with.
        prompt_length: number of tokens in the prompt; None for a text without a prompt.
        part: the corpus; for real text, the corpus that continues it; None if there is none.
        is_text: whether the document is a text whose tokens are not stored.
    """

    token_ids: list[int]
    prompt_length: int | None
    part: Part | None
    is_text: bool


@dataclass
class Chosen:
    """Documents that were chosen, not yet explained.

    Attributes:
        columns: their corpora.
        entries: the documents.
        sources: what to explain, by the place of the document.
        notes: what is missing, and why.
    """

    columns: list[Column] = field(default_factory=list)
    entries: list[Entry] = field(default_factory=list)
    sources: dict[Place, Source] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def document(self, place: Place) -> Document:
        """Return the document at a place."""
        return self.entries[place[0]].documents[place[1]]

    def add(self, name: str, group: str, documents: Sequence[tuple[Document, Source]]) -> None:
        """Add an entry, whose start is that of its first document."""
        taken = {entry.id for entry in self.entries}
        id = name if name not in taken else f"{name} ({group})"
        self.sources |= {(len(self.entries), at): source for at, (_, source) in enumerate(documents)}
        shown = tuple(document for document, _ in documents)
        self.entries.append(Entry(id, group, _start(shown[0].text), shown))


class _Generated(NamedTuple):
    """A generated corpus and its seeds."""

    part: Part
    seeds: seed_rows.Seeds


def choose(parts: Sequence[Part], names: Names) -> Chosen:
    """Choose documents. The choice depends on the names of seeds and on nothing else, and takes bounded memory.

    Corpora that share seeds are shown side by side, with the first continuation of each seed, beside the real text that
    the seed was cut from, if it can be read. Generated corpora that are not finished are left out.

    Args:
        parts: the parts of a report.
        names: what names in manifests stand for.
    """
    chosen, generated = Chosen(), []
    for part in of_kind(parts, manifests.GENERATED):
        if part.manifest["complete"]:
            try:
                generated.append(_Generated(part, seed_rows.read_seeds(part.path, part.manifest)))
            except (InputError, CorpusError, OSError) as error:
                chosen.notes.append(f"The documents of {part.name} are left out: {reason(error)}")
    groups = seed_rows.groups([one.seeds for one in generated], COUNT)
    shown: set[Path] = set()
    for group in groups:
        title = "Seeds" if len(groups) == 1 else f"Seeds of {', '.join(generated[one].part.name for one in group)}"
        shown |= _add_continuations(chosen, title, [generated[one] for one in group], names)
    for part in of_kind(parts, manifests.PREPARED, TEXT):
        if part.path.resolve() not in shown:
            _add_texts(chosen, part)
    return chosen


def _add_continuations(chosen: Chosen, title: str, group: list[_Generated], names: Names) -> set[Path]:
    """Add an entry per seed that these corpora share; return the folders that the seeds' own texts were read from."""
    parts = [one.part for one in group]
    numbers = seed_rows.choose([one.seeds for one in group], COUNT)
    found = [
        seed_rows.read(part.path, part.manifest, of_part, _COLUMNS)
        for part, of_part in zip(parts, numbers, strict=True)
    ]
    try:
        real, paths = _real_texts(parts[0].manifest["seeds"], {row["seed_id"] for row in found[0]}, names)
    except (InputError, CorpusError, OSError) as error:
        chosen.notes.append(f"The real text of the seeds is left out: {reason(error)}")
        real, paths = {}, []
    first = len(chosen.columns)
    if real:
        chosen.columns.append(Column("real", "", "", "", ""))
    chosen.columns += [_column(part, names) for part in parts]
    for of_seed in zip(*found, strict=True):
        documents = []
        seed = of_seed[0]
        if text := real.get(seed["seed_id"]):
            prompt = seed["token_ids"][: seed["prompt_length"]]
            documents.append((_document(first, text), Source(prompt, len(prompt), parts[0], True)))
        for at, (row, part) in enumerate(zip(of_seed, parts, strict=True), first + bool(real)):
            document = _document(at, row["text"], len(row["token_ids"]), row["finish_reason"])
            documents.append((document, Source(row["token_ids"], row["prompt_length"], part, False)))
        chosen.add(seed["seed_id"], title, documents)
    return {path.resolve().parent for path in paths} if real else set()


def _column(part: Part, names: Names) -> Column:
    params, (good, bad) = params_of(part), pair_of(part, names)
    return Column(part.name, params.method if params else "", good.name, bad.name if bad else "", "")


def _real_texts(about: dict[str, Any], ids: set[str], names: Names) -> tuple[dict[str, str], list[Path]]:
    """Return texts of seeds by name, and the files that they were read from.

    Raises:
        InputError: a file is gone or cannot be read.
    """
    if not about.get("paths"):  # a corpus that was written from Python
        return {}, []
    if hub := next((path for path in about["paths"] if path.startswith(HUB)), None):
        raise InputError(f"{hub}: is not on this machine")
    paths = [names.existing_path(path) for path in about["paths"]]
    with _without_warnings():  # dropped seeds were reported when the corpus was generated
        texts, _ = read_texts(paths, field=about.get("field", "text"), chunk_words=about.get("chunk_words"))
    return {one.id: one.text for one in texts if one.id in ids}, paths


@contextmanager
def _without_warnings() -> Iterator[None]:
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _add_texts(chosen: Chosen, part: Part) -> None:
    """Add documents of a corpus that was not generated, an entry for each."""
    name = part.name
    try:
        texts = ((at, text) for at, text in enumerate(find_text(str(part.path)).texts(), 1) if text.strip())
        found = sorted(heapq.nsmallest(COUNT, texts, key=lambda one: _hash(one[0])))
    except (InputError, CorpusError, OSError) as error:
        chosen.notes.append(f"The documents of {name} are left out: {reason(error)}")
        return
    column = len(chosen.columns)
    if found:
        chosen.columns.append(Column(name, "", "", "", ""))
    for number, text in found:
        document, source = _document(column, text), Source([], None, None, True)
        chosen.add(f"{name} {number}", f"Documents of {name}", [(document, source)])


def _hash(number: int) -> bytes:
    return hashlib.blake2b(str(number).encode(), digest_size=8).digest()


def _document(column: int, text: str, tokens: int | None = None, finish_reason: str = "") -> Document:
    left_out = max(0, len(text) - MOST_CHARACTERS)
    words = len(text.split())
    return Document(column, text[:MOST_CHARACTERS], words, tokens, finish_reason, left_out, None, "")


def _start(text: str) -> str:
    """Return the first words of a text."""
    words = text[: 20 * _START_CHARACTERS].split()
    start = " ".join(words[:_START_WORDS])
    return start[:_START_CHARACTERS] + "…" * (len(words) > _START_WORDS or len(start) > _START_CHARACTERS)
