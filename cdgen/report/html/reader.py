"""What the section "Read it" shows: documents as JSON for reader.js, and values for its template."""

from typing import Any

from markupsafe import Markup

from cdgen.report.document_content import Column, Document, Documents, Entry
from cdgen.viewer.encode import viewer_data
from cdgen.viewer.page import script_json

_WITHOUT_SCRIPTS = 3  # entries that are shown if the reader's browser runs no scripts


def documents_view(documents: Documents) -> dict[str, Any]:
    """Return the values that templates/read.html needs."""
    explanations = [one.explanation for entry in documents.entries for one in entry.documents if one.explanation]
    reasons = {one.finish_reason for entry in documents.entries for one in entry.documents}
    return {
        "notes": documents.notes,
        "has_seeds": any(one.good for one in documents.columns),
        "labels": labels(documents.columns),
        "reasons": sorted(reasons - {""}),
        "has_real": "" in reasons,
        "first": documents.entries[:_WITHOUT_SCRIPTS],
        "documents_json": Markup(script_json(documents_data(documents))),
        "viewer_json": Markup(script_json(viewer_data(explanations))),
    }


def documents_data(documents: Documents) -> dict[str, Any]:
    """Return documents as JSON values. An explanation is an index into the viewer data of all explanations in order."""
    names, entries, explained = labels(documents.columns), [], 0
    for entry in documents.entries:
        of_entry = []
        for one in entry.documents:
            of_entry.append(_document(one, explained if one.explanation else None))
            explained += one.explanation is not None
        entries.append(_entry(entry, of_entry))
    columns = [
        {"label": label, "name": one.name, "good": one.good, "bad": one.bad, "scored_with": one.scored_with}
        for label, one in zip(names, documents.columns, strict=True)
    ]
    return {"columns": columns, "entries": entries}


def labels(columns: tuple[Column, ...]) -> list[str]:
    """Return how columns are called: by their method if no other column has it, else by their corpus."""
    methods = [one.method for one in columns]
    return [one.method if one.method and methods.count(one.method) == 1 else one.name for one in columns]


def _entry(entry: Entry, documents: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": entry.id, "group": entry.group, "start": entry.start, "documents": documents}


def _document(one: Document, explained: int | None) -> dict[str, Any]:
    return {
        "column": one.column,
        "text": one.text,
        "words": one.words,
        "tokens": one.tokens,
        "finish_reason": one.finish_reason,
        "left_out": one.left_out,
        "explained": explained,
        "rest": len(one.rest.encode("utf-16-le")) // 2,  # JavaScript counts UTF-16 units
    }
