"""Pages of results: their tables are those that `cdgen compare` makes from the scores in the repository."""

import shlex
from pathlib import Path

import pytest

from cdgen.evaluation.comparison.compare import compare
from cdgen.evaluation.comparison.tables import as_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
LARGEST = 5e6  # bytes of all files with scores


def commands(page: Path) -> list[list[str]]:
    """Return the commands in a page that compare results in the repository."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("    cdgen compare docs/results/")]


PAGES = {page.name: page for page in sorted(RESULTS.glob("*.md")) if commands(page)}


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_are_those_of_the_scores(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    for _, _, pattern, *options in commands(PAGES[name]):
        folders = sorted(ROOT.glob(pattern))
        assert len(folders) >= 3 and options == ["--baseline", "real"]
        for line in as_markdown(compare(folders, baseline="real")).splitlines():
            assert line in text


def test_every_folder_of_scores_has_a_page_and_all_are_small() -> None:
    folders = {path.parents[0] for path in RESULTS.rglob("results.json")}
    shown = {folder for page in PAGES.values() for command in commands(page) for folder in ROOT.glob(command[2])}
    assert folders == shown and len(PAGES) >= 1
    assert sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file()) < LARGEST
