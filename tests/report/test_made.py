"""BibTeX entries: they say what CITATION.cff says, which is not installed."""

import re
from pathlib import Path

import yaml

from cdgen.report.made import CITATIONS

ACCENTS = {r"{\ae}": "æ", r"{\'e}": "é"}


def fields(entry: str) -> dict[str, str]:
    """Return the fields of a BibTeX entry, without its protective braces."""
    for accent, character in ACCENTS.items():
        entry = entry.replace(accent, character)
    return {name: value.strip("{}") for name, value in re.findall(r"^  (\w+) *= \{(.*)\},?$", entry, re.MULTILINE)}


def test_citations_are_those_of_the_citation_file() -> None:
    stated = yaml.safe_load((Path(__file__).parents[2] / "CITATION.cff").read_text(encoding="utf-8"))
    paper, software = (fields(entry) for _, entry in CITATIONS)
    [reference] = stated["references"]
    names = (f"{one['family-names']}, {one['given-names']}" for one in reference["authors"])
    assert paper == {
        "title": reference["title"],
        "author": " and ".join(names),
        "booktitle": reference["collection-title"],
        "year": str(reference["year"]),
        "url": reference["url"],
        "note": reference["notes"],
    }
    assert (software["title"], software["license"]) == (stated["title"], stated["license"])
    assert software["author"] == stated["authors"][0]["name"]
