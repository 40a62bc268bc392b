"""`cdgen show`: the page and the terminal, where the text comes from, and what is refused before any work."""

import errno
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from cdgen.cli import main
from cdgen.engine.llm import ContrastiveLM
from cdgen.engine.sampling_params import SamplingParams
from cdgen.viewer.terminal import print_explanation
from tests.helpers.browser import open_page
from tests.helpers.tiny_models import SENTENCES

if TYPE_CHECKING:
    from playwright.sync_api import Browser

Outcome = tuple[int, str, str]  # exit code, standard output, standard error
TEXT = SENTENCES[0]


@pytest.fixture
def show(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Return a function that runs `cdgen show` with tiny models in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*argv: object, bad: bool = True) -> Outcome:
        models = ["--good", folders["good"], *(["--bad", folders["bad"]] if bad else [])]
        code = main(["show", *map(str, (*models, *argv))])
        return code, *capsys.readouterr()

    return run


def test_a_page_is_written(show: Callable[..., Outcome], tmp_path: Path, browser: "Browser") -> None:
    code, output, _ = show(TEXT)
    assert code == 0 and output.count("\n") == 1
    summary = (
        r"show\.html: \d+ tokens.*; mean contrast [+-]\d\.\d\d nats; greedy decoding would have taken \d+ of \d+\n"
    )
    assert re.fullmatch(summary, output), output
    assert [path.name for path in tmp_path.iterdir()] == ["show.html"]
    with open_page(browser, tmp_path / "show.html") as opened:
        opened.check()
        assert TEXT in " ".join(opened.page.inner_text("body").split())


def test_terminal_prints_and_writes_no_page(show: Callable[..., Outcome], tmp_path: Path) -> None:
    code, output, _ = show(TEXT, "--terminal")
    assert code == 0 and TEXT in " ".join(output.split()) and "p sampling" in output
    assert [*tmp_path.iterdir()] == []
    code, output, _ = show(TEXT, "--terminal", "--out", "new/page.html")
    assert code == 0 and "p sampling" in output and output.splitlines()[-1].startswith("new/page.html: ")
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")


def test_the_summary_counts_greedy_decoding_and_averages_the_contrast(
    show: Callable[..., Outcome], folders: dict[str, Path]
) -> None:
    explanation = ContrastiveLM(folders["good"], folders["bad"]).explain(TEXT)
    predicted = [(one.token_id, one.prediction) for one in explanation.tokens if one.prediction]
    mean = sum(one.good - one.bad for _, one in predicted if one.bad is not None) / len(predicted)
    greedy = sum(token == one.best_id for token, one in predicted)
    _, output, _ = show(TEXT)
    assert f"mean contrast {mean:+.2f} nats; greedy decoding would have taken {greedy} of {len(predicted)}" in output


@pytest.mark.parametrize(("options", "values"), [
    ((), {}),
    (("--method", "top_k", "--seed", "3"), {"alpha": 0.0, "contrast_strength": 0.0, "top_k": 200, "seed": 3}),
])  # fmt: skip
def test_a_continuation_is_that_of_generate(
    show: Callable[..., Outcome],
    folders: dict[str, Path],
    options: tuple[str, ...],
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm, params = (
        ContrastiveLM(folders["good"], folders["bad"]),
        SamplingParams(max_tokens=12, ignore_eos=True, **values),
    )
    [request] = lm.generate(TEXT, params)
    prompt, new = request.prompt_token_ids, request.outputs[0].token_ids
    expected = io.StringIO()
    print_explanation(Console(file=expected, width=80), lm.explain([*prompt, *new], params, prompt_length=len(prompt)))
    monkeypatch.setenv("COLUMNS", "80")
    code, output, _ = show(TEXT, "--generate", "--max-tokens", 12, "--ignore-eos", "--terminal", *options)
    assert code == 0 and output == expected.getvalue()
    assert show(TEXT, "--generate", "--max-tokens", 12, "--ignore-eos")[1].startswith("show.html: 12 tokens after")


def test_without_bad_a_method_without_contrast_works(show: Callable[..., Outcome]) -> None:
    code, output, _ = show(TEXT, "--method", "ancestral", "--terminal", bad=False)
    assert code == 0 and "no BAD" in output
    code, output, error = show(TEXT, bad=False)
    assert code == 2 and output == "" and "--bad is required for the method contrastive" in error


def test_standard_input(show: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b \xc3\xa9\n"), encoding="ascii"))
    code, output, _ = show("-", "--terminal")
    assert code == 0 and "a b <c3><a9>é\n" in output and "↵" not in output
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a b \xe9\n"), encoding="ascii"))
    assert show("-")[::2] == (2, "cdgen: error: standard input: is not UTF-8 (byte 4)\n")
    monkeypatch.setattr(sys, "stdin", None)
    assert show("-")[::2] == (2, "cdgen: error: standard input: is closed; give the text itself instead of -\n")


def test_the_reader_of_a_pipe_may_stop_early(show: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        found = show(TEXT, "--terminal")
    assert found == (0, "", "")


def test_a_text_of_one_token_is_refused(show: Callable[..., Outcome], tmp_path: Path) -> None:
    code, _, error = show("")
    assert code == 2 and "TEXT: has a single token" in error and [*tmp_path.iterdir()] == []
    assert show("", "--generate", "--max-tokens", 3)[0] == 0


@pytest.mark.parametrize(("argv", "message"), [
    (("--max-tokens", "5"), "--max-tokens: needs --generate"),
    (("--ignore-eos",), "--ignore-eos: needs --generate"),
    (("--stop", "x"), "--stop: needs --generate"),
    (("--n", "2"), "--n"),
    (("--logprobs",), "--logprobs"),
    (("--temperature", "nan"), "--temperature nan"),
    (("--bad", "dropout:2"), "dropout"),
    (("--out", "here"), "--out here: is not the name of a file"),
    (("--out", ""), "--out '': is not the name of a file"),
    (("--out", "notes.html"), "--out notes.html: is not an HTML page"),
    (("--out", "notes.html/page.html"), "is not a folder"),
])  # fmt: skip
def test_requests_are_refused_before_a_model_is_read(
    argv: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "notes.html").write_text("Remember the milk. <html>")
    assert main(["show", "--good", "nosuch", "--bad", "nosuch", TEXT, *argv]) == 2
    error = capsys.readouterr().err
    assert error.startswith("cdgen: error: ") and error.count("\n") == 1 and message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "notes.html"]
    assert (tmp_path / "notes.html").read_text() == "Remember the milk. <html>"


@pytest.mark.parametrize("start", ["", "<!DOCTYPE html>\n", "\ufeff \n<HTML lang='en'>"])
def test_a_page_that_exists_is_replaced_as_a_whole(
    start: str, show: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "page.html"
    path.write_text(f"{start}{'old' if start else ''}")
    before = path.read_text()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        code, _, error = show(TEXT, "--out", path)
    assert code == 1 and "page.html: cannot be written: No space left" in error
    assert path.read_text() == before and [*tmp_path.iterdir()] == [path]
    assert show(TEXT, "--out", path)[0] == 0 and "old" not in path.read_text()[:100]
