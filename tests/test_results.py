"""Pages of results: their recipes can be run, and `cdgen compare` makes their tables from scores in the repository."""

import shlex
from pathlib import Path

import pytest

from cdgen.cli import main
from cdgen.evaluation.comparison.compare import compare
from cdgen.evaluation.comparison.tables import as_markdown

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
LARGEST = 5e6  # bytes of all files with scores
INPUTS = {  # small files for the recipes to read
    "books/book.txt": "The sea was calm.\n",
    "icelandic/saga.txt": "Sjórinn var kyrr.\n",
    "blimp/agreement.jsonl": '{"sentence_good": "It is.", "sentence_bad": "It are.", "UID": "agreement"}\n',
}


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


@pytest.mark.parametrize("name", [path.name for path in sorted(RESULTS.glob("*.toml"))])
def test_the_recipes_can_be_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for file, text in INPUTS.items():
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text(text, encoding="utf-8")
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    assert main(["run", f"docs/results/{name}", "--out", "run", "--dry-run"]) == 0
