"""Explain the documents of a report: what GOOD and BAD predicted at their first tokens."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from cdgen.engine.sampling_params import SamplingParams
from cdgen.engine.text import decode_parts
from cdgen.errors import InputError
from cdgen.report.corpora import params_of
from cdgen.report.document_content import Column, Document, Documents
from cdgen.report.documents import Chosen, Place, Source
from cdgen.report.loading import ModelEntry
from cdgen.report.names import Names
from cdgen.report.parts import Part
from cdgen.storage.progress import Progress, Silent
from cdgen.viewer.explanation import Explanation
from cdgen.wording import joined

if TYPE_CHECKING:
    from cdgen.engine.llm import ContrastiveLM

MOST_TOKENS = 200  # tokens of a document that are explained
_ALL_TOKENS = 40_000  # tokens that are explained in all documents together, which bounds the size of the page
_FEWEST_TOKENS = 50  # tokens of a document that are explained however many documents there are
_LISTED = 6  # tokens listed at each position

LoadModels: TypeAlias = "Callable[[ModelEntry, ModelEntry | None], ContrastiveLM]"


@dataclass(frozen=True)
class _Plan:
    """How a document is explained.

    Attributes:
        good, bad: the models.
        params: the sampling parameters.
        names: how the report calls the models; the second one is None without BAD.
        scored_with: these names, if other models wrote the document; "" if not.
    """

    good: ModelEntry
    bad: ModelEntry | None
    params: SamplingParams
    names: tuple[str, str | None]
    scored_with: str


def explain(chosen: Chosen, names: Names, load: LoadModels, progress: Progress | None = None) -> Documents | None:
    """Explain documents under the models and sampling parameters that wrote them.

    Text that was not generated, and corpora that were generated without BAD, are scored with the BAD of another corpus,
    so that all documents have colours that can be compared. Documents whose models are gone stay plain text.

    Args:
        chosen: the documents.
        names: what names in manifests stand for.
        load: function that loads a pair of models, or raises InputError.
        progress: receives the documents that are explained.
    Returns:
        the documents, or None if there are none and nothing is to be said about that.
    """
    reference = _reference([source.part for source in chosen.sources.values() if source.part])
    jobs: dict[str, list[tuple[Place, _Plan]]] = {}
    for place, source in chosen.sources.items():
        if plan := _plan(source, reference, names):
            jobs.setdefault(json.dumps([plan.good, plan.bad]), []).append((place, plan))
    progress, total = progress or Silent(), sum(map(len, jobs.values()))
    most = min(MOST_TOKENS, max(_FEWEST_TOKENS, _ALL_TOKENS // max(total, 1)))
    if total:
        progress.begin(total, unit="documents", verb="to score", tokens_per_unit=most)
    found: dict[Place, Document] = {}
    faults: dict[int, str] = {}  # why a column has no colours
    columns = list(chosen.columns)
    for of_pair in jobs.values():  # one pair of models is in memory at a time
        try:
            lm = load(of_pair[0][1].good, of_pair[0][1].bad)
        except InputError as error:
            faults |= {chosen.document(place).column: str(error) for place, _ in of_pair}
            progress.advance(len(of_pair))
            continue
        for place, plan in of_pair:
            document = chosen.document(place)
            try:
                found[place] = _explained(lm, document, chosen.sources[place], plan, most)
                columns[document.column] = replace(columns[document.column], scored_with=plan.scored_with)
                progress.tokens(most)
            except InputError as error:
                faults.setdefault(document.column, str(error))
            progress.advance(1)
        del lm  # otherwise it would stay in memory while the next pair is loaded
    return _documents(chosen, columns, found, faults)


def _documents(
    chosen: Chosen, columns: list[Column], found: dict[Place, Document], faults: dict[int, str]
) -> Documents | None:
    """Return all documents: those that were explained, and others as they are."""
    entries = tuple(
        replace(entry, documents=tuple(found.get((at, of), one) for of, one in enumerate(entry.documents)))
        for at, entry in enumerate(chosen.entries)
    )
    notes = list(chosen.notes)
    for fault in dict.fromkeys(faults.values()):
        names = [columns[column].name for column, other in faults.items() if other == fault]
        notes.append(f"{joined(names)}: documents are shown without colours: {fault}")
    return Documents(tuple(columns), entries, tuple(notes)) if entries or notes else None


def _reference(parts: list[Part]) -> Part | None:
    """Return the first corpus with a BAD, or else the first one."""
    return next((part for part in parts if part.manifest["models"]["bad"]), parts[0] if parts else None)


def _plan(source: Source, reference: Part | None, names: Names) -> _Plan | None:
    """Return how a document is explained; None if no corpus names a model, or its parameters are not known."""
    part = source.part or reference
    if part is None or reference is None:
        return None
    own = part.manifest["models"]
    good, bad, params = own["good"], own["bad"], params_of(reference if source.is_text else part)
    if params is None:
        return None
    if source.is_text:  # as GOOD alone would continue it, with the candidates of the other corpora
        params = SamplingParams(alpha=params.alpha, contrast_strength=0)
    other = reference.manifest["models"]["bad"]
    if bad is None and other is not None and _fit(part, reference):
        bad = other
    first = names.model(good)
    shown = (first.name, names.model(bad, first).name if bad else None)
    is_own = not source.is_text and bad == own["bad"]
    return _Plan(good, bad, params, shown, "" if is_own else joined([one for one in shown if one]))


def _fit(part: Part, reference: Part) -> bool:
    """Return whether the BAD of one corpus can be used beside the GOOD of another."""
    (good, _), (other, bad) = (
        (one.manifest["models"]["good"], one.manifest["models"]["bad"]) for one in (part, reference)
    )
    same_tokens = part.manifest["settings"].get("tokenizer") == reference.manifest["settings"].get("tokenizer")
    is_derived = "+" in bad["fingerprint"]
    return bool(good["fingerprint"] == other["fingerprint"] or (same_tokens and not is_derived))


def _explained(lm: "ContrastiveLM", document: Document, source: Source, plan: _Plan, most: int) -> Document:
    """Return a document with an explanation of its first tokens, at most `most`.

    Raises:
        InputError: there is no tokenizer, the text is not the one that a seed was cut from, or the models give no
            finite numbers.
    """
    if lm.tokenizer is None:
        raise InputError(f"{lm.pair.good.name}: has no tokenizer")
    models = [lm.pair.good, *([lm.pair.bad] if lm.pair.bad else [])]
    most = min([most, *(model.position_limit for model in models if model.position_limit)])
    ids = _text_ids(lm, document, source) if source.is_text else source.token_ids
    prompt_length = None if source.prompt_length is None else min(source.prompt_length, most)
    found = lm.explain(ids[:most], plan.params, prompt_length=prompt_length)
    start, _ = decode_parts(lm.tokenizer, ids[:most], ids[most:], plan.params.skip_special_tokens)
    rest = document.text[len(start) :] if len(ids) > most else ""
    return replace(document, explanation=_shortened(found, plan), rest=rest)


def _shortened(explanation: Explanation, plan: _Plan) -> Explanation:
    """Return an explanation that lists fewer tokens at each position, and calls the models by their short names."""
    tokens = []
    for token in explanation.tokens:
        if (one := token.prediction) is not None:
            kept = (token.token_id, one.best_id, one.good_best_id)
            listed = tuple(each for at, each in enumerate(one.listed) if at < _LISTED or each.token_id in kept)
            token = replace(token, prediction=replace(one, listed=listed))
        tokens.append(token)
    return replace(explanation, tokens=tuple(tokens), good=plan.names[0], bad=plan.names[1])


def _text_ids(lm: "ContrastiveLM", document: Document, source: Source) -> list[int]:
    """Return the tokens of a text that was not generated."""
    special: dict[str, Any] = source.part.manifest["seeds"] if source.part else {}
    ids = lm.prompt_ids(document.text, "a document", parse_special=special.get("parse_special", False))
    prompt = source.token_ids[: max(len(ids) - 1, 1)]  # the last token may differ, if the text is cut there
    if ids[: len(prompt)] != prompt:
        raise InputError("the files of the seeds have changed since, so these may be other texts")
    return ids
