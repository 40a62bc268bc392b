"""From everything that a report shows to one HTML file, which loads nothing from anywhere else."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import cdgen
from cdgen.errors import escaped
from cdgen.report.content import Report
from cdgen.report.html.drawing import swatch
from cdgen.report.html.reader import documents_view
from cdgen.report.html.styles import Styles
from cdgen.report.html.views import ablations_view, corpora_view, models_view, outcome_view
from cdgen.viewer import page as viewer
from cdgen.wording import duration

_FOLDER = Path(__file__).parent


class _Section(NamedTuple):
    """A section of the page.

    Attributes:
        id: its id, and the name of its template.
        title: its heading.
        view: what its template shows.
    """

    id: str
    title: str
    view: dict[str, Any]


def render(report: Report) -> str:
    """Return a report as an HTML page.

    Sections without content are left out. All names and texts are shown as text: HTML in them is escaped, and so are
    control characters and changes of the text's direction.
    """
    sections = list(_sections(report))
    scripts, sheets = [_read("report.js")], [viewer.asset("base.css"), _read("report.css")]
    if report.documents:
        scripts += [viewer.asset("viewer.js"), _read("reader.js")]
        sheets += [viewer.asset("viewer.css"), _read("reader.css")]
    environment = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(lines=_lines, figures=_figures, duration=duration, swatch=swatch)
    return environment.get_template("page.html").render(
        report=report,
        sections=sections,
        version=cdgen.__version__,
        policy=viewer.policy(scripts),
        styles=Markup("\n".join(sheets)),
        scripts=[Markup(script) for script in scripts],
    )


def _sections(report: Report) -> Iterator[_Section]:
    """Iterate over the sections that have content."""
    styles = Styles(report)
    if report.outcome:
        yield _Section("outcome", "What came out", outcome_view(report.outcome, styles))
    if report.models:
        yield _Section("models", "Models", models_view(report.models, styles))
    if report.corpora:
        yield _Section("corpora", "Corpora", corpora_view(report.corpora, styles))
    if report.ablations and report.outcome and report.outcome.comparison:
        yield _Section("ablations", "Ablations", ablations_view(report.ablations, report.outcome.comparison, styles))
    if report.documents:
        yield _Section("read", "Read it", documents_view(report.documents))
    if any(vars(report.made).values()) or report.notes:
        yield _Section("made", "How it was made", {})


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _shown(value: object) -> object:
    """Return what an expression in a template shows: strings without characters that are not text."""
    return escaped(value) if type(value) is str else value


def _lines(text: str) -> Markup:
    """Return a text of several lines, each of which is shown like any other string."""
    return Markup("\n").join(escaped(line) for line in text.splitlines())


def _figures(text: str) -> Markup:
    """Return a sentence in which no line ends between a number and its percent sign."""
    figure = r"[+-]?\d+(?:\.\d+)? %"
    parts = re.split(f"({figure})", escaped(text))
    return Markup("").join(
        Markup('<span class="figure">{}</span>').format(part) if place % 2 else part for place, part in enumerate(parts)
    )
