"""The command `cdgen report`: the page, its figures, and bad requests."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from cdgen.cli import main, report
from cdgen.errors import InputError
from tests.helpers.pages import ReadPage
from tests.helpers.prepared import fish, jsonl

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def command(page: ReadPage, name: str) -> list[str]:
    """Return the arguments of the command that prints the same figures as the page."""
    found = {text for tag, text in page.blocks if tag == "pre" and text.startswith(f"cdgen {name} ")}
    return shlex.split(next(text for text in found if "--out" not in text))[1:]


def rows(page: ReadPage) -> list[list[str]]:
    """Return the rows of all tables, without empty cells."""
    return [[cell.strip() for cell in row if cell.strip()] for table in page.tables for row in table.rows]


def cells(line: str) -> list[str]:
    """Return the columns of a line that a command has printed."""
    return [each.strip() for each in re.split(r"\s{2,}", line.strip())]


@pytest.fixture(scope="module")
def page(experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> ReadPage:
    """Return the page about a finished experiment."""
    out = tmp_path_factory.mktemp("page") / "new" / "page.html"
    assert main(["report", str(experiment), "--out", str(out), "--device", "cpu", "--quiet"]) == 0
    return ReadPage(out.read_text(encoding="utf-8"))


def test_figures_of_corpora_are_those_of_corpus_stats(page: ReadPage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(page, "corpus-stats"), "--quiet"]) == 0
    printed = capsys.readouterr().out.split("\n\n")[0].splitlines()
    assert len(printed) > 15 and any(line.startswith("perplexity under BAD") for line in printed)
    for line in printed[1:]:
        assert cells(line) in rows(page), line


def test_figures_of_methods_are_those_of_compare(page: ReadPage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(page, "compare")) == 0
    *tables, rest = capsys.readouterr().out.split("\n\n")
    shown = rows(page)
    printed = [line for table in tables for line in table.splitlines() if re.match(r"  (ancestral|contrastive) ", line)]
    assert len(printed) == 6, "the mean relative changes, and two tasks"
    for line in printed:
        assert cells(line) in shown, line
    text = page.texts["outcome"]
    sentences = [line for line in rest.splitlines() if re.match(r"(ancestral|contrastive): ", line)]
    assert len(sentences) == 2 and all(sentence in text for sentence in sentences)


def test_the_page_is_put_into_the_folder_of_the_experiment(
    experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("evaluation", "comparison"):
        shutil.copytree(experiment / name, tmp_path / "run" / name)
    for argv, out in ((["run"], "run/report.html"), (["run/evaluation", "run/comparison"], "report.html")):
        assert main(["report", *argv, "--quiet"]) == 0
        size = Path(out).stat().st_size / 1e6
        assert capsys.readouterr() == (f"{out}: {size:.1f} MB\n", "")
    assert main(["report", "run", "--quiet"]) == 0, "it is replaced, and is no part of the experiment"


def test_a_page_about_two_corpora_has_no_holes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [jsonl(tmp_path / name, fish(30, start)) for name, start in (("a.jsonl", 0), ("b.jsonl", 15))]
    assert main(["report", *names, "--out", str(tmp_path / "page.html")]) == 0
    found = ReadPage((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert ("h1", "a.jsonl and b.jsonl") in found.blocks
    assert found.sections == ["corpora", "read", "made"]
    assert ["documents", "30", "30"] in rows(found)


def test_missing_packages_are_reported_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert main(["report", "absent"]) == 2
    reason = 'report: needs jinja2 and matplotlib; in a clone of cdgen: pip install ".[report]"'
    assert capsys.readouterr().err == f"cdgen: error: {reason}\n"


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (["absent"], 2, "absent: no such file or folder"),
        ([""], 2, "'': no such file or folder"),
        (["text.jsonl", "--out", "link.html"], 2, "--out link.html: is a symbolic link, and would be replaced"),
        (["text.jsonl", "--out", "new/"], 2, "--out new/: is not the name of a file"),
        (["notes.md"], 2, "notes.md: is neither the folder of an experiment nor a corpus, a training run, or the"),
        (["text.jsonl", "--out", "notes.md"], 2, "notes.md: is not an HTML page, and would be replaced"),
        (["text.jsonl", "--out", "text.jsonl"], 2, "text.jsonl: is not an HTML page, and would be replaced"),
        (["text.jsonl", "--out", "notes.md/page.html"], 2, "notes.md is not a folder"),
        (["text.jsonl", "--dtype", "int8"], 2, "dtype = 'int8'"),
        ([], 2, "the following arguments are required: PATH"),
    ],
)
def test_bad_requests(
    argv: list[str],
    code: int,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "text.jsonl", fish(3))
    (tmp_path / "notes.md").write_text("# Notes")
    (tmp_path / "link.html").symlink_to("absent.html")
    before = sorted(path.name for path in tmp_path.iterdir())
    assert main(["report", *argv]) == code
    output = capsys.readouterr()
    assert output.err.startswith("cdgen: error: ") and reason in output.err and output.err.count("\n") == 1
    assert output.out == "" and sorted(path.name for path in tmp_path.iterdir()) == before


def test_nothing_is_written_if_reading_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*paths: object, **options: object) -> None:
        raise InputError("interrupted")

    text = jsonl(tmp_path / "text.jsonl", fish(3))
    monkeypatch.setattr("cdgen.report.find.read", fail)
    assert main(["report", text, "--out", str(tmp_path / "new" / "page.html")]) == 2
    assert not (tmp_path / "new").exists() and "interrupted" in capsys.readouterr().err
