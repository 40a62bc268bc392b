"""The command `cdgen corpus-stats`: the table, the JSON file, and bad requests."""

import json
import re
from pathlib import Path

import pytest

from cdgen.cli import main
from tests.helpers.prepared import jsonl
from tests.helpers.tiny_models import SENTENCES


@pytest.fixture
def corpora(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with three corpora; return it."""
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "real.jsonl", SENTENCES * 3)
    jsonl(tmp_path / "synthetic.jsonl", [SENTENCES[1] + " The end."])
    jsonl(tmp_path / "empty.jsonl", [""])
    return tmp_path


def rows(text: str) -> dict[str, list[str]]:
    """Return the columns of each line of a table by its title."""
    found = (re.split(r"\s{2,}", line.strip()) for line in text.splitlines())
    return {title: columns for title, *columns in found if columns}


def test_a_table_and_json(corpora: Path, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--good", str(folders["good"]), "--bad", str(folders["bad"]), "--sample", "2"]
    files = ["real.jsonl", "synthetic.jsonl", "--against", "real.jsonl", "--json", "out/stats.json", "--quiet"]
    assert main(["corpus-stats", *files, *models]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    table, written = rows(output.out), json.loads((corpora / "out" / "stats.json").read_text())
    real, synthetic = written["corpora"]
    assert table["documents"] == ["9", "1"]
    assert table["words"] == [str(real["words"]), str(synthetic["words"])]
    assert table["8-grams copied"] == ["-", f"{100 * synthetic['overlap']['copied']['8']:.2f} %"]
    assert table["longest copied span, words"] == ["-", str(len(SENTENCES[1].split()))]
    assert table[f"n-gram diversity, {synthetic['words']} words of each"][1] == "1.0000"
    assert table["perplexity under GOOD"][0] == f"{real['contrast']['good_perplexity']:,.2f}"
    assert written["sample"] == real["contrast"]["documents"] == 2
    assert (written["against"], written["seed"], real["overlap"]) == ("real.jsonl", 0, None)
    assert "end of text" not in output.out
    assert "scored in synthetic.jsonl: 1 documents" in output.out


def test_without_models_torch_is_not_needed(corpora: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["corpus-stats", "real.jsonl"]) == 0
    output = capsys.readouterr().out
    assert "words of each" not in output and "copied" not in output and "GOOD" not in output


def test_infinite_figures_are_null(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdgen.evaluation.corpus_stats.repetition.Repetition.documents", float("inf"))
    assert main(["corpus-stats", "real.jsonl", "--json", "stats.json"]) == 0
    assert json.loads((corpora / "stats.json").read_text())["corpora"][0]["repetition"] is None


@pytest.mark.parametrize(
    ("argv", "code", "reason"),
    [
        (["empty.jsonl"], 2, "empty.jsonl: has no text"),
        (["absent"], 2, "absent: no such file or folder"),
        (["real.jsonl", "--against", "absent"], 2, "absent: no such file or folder"),
        (["real.jsonl", "--sample", "0"], 2, "--sample = 0: must be 1 to"),
        (["real.jsonl", "--seed", "-1"], 2, "--seed = -1: must be 0 to"),
        (["real.jsonl", "--alpha", "0"], 2, "alpha = 0: must be more than 0"),
        (["unread", "--bad", "x"], 2, "--bad: needs --good too"),
        (["unread", "--device", "tpu"], 2, "--device: needs --good too"),
        (["unread", "--dtype", "int3"], 2, "--dtype: needs --good too"),
        (["unread", "--good", "typo"], 2, "typo: no such folder or file"),
        (["unread", "--good", ".", "--bad", "dropout:2"], 2, "dropout = 2.0: must be between 0 and 1"),
        (["unread", "--good", ".", "--dtype", "int3"], 2, "dtype = 'int3': use float32"),
        (["unread", "--good", ".", "--device", "tpu"], 2, "device = 'tpu': cannot be used here"),
        (["unread", "--good", "."], 2, ".: holds neither config.json nor a .gguf file"),
        (["real.jsonl", "--json", "."], 2, "--json .: is not the name of a file"),
        (["real.jsonl", "--json", ""], 2, "--json '': is not the name of a file"),
        (["real.jsonl", "--json", "./real.jsonl"], 2, "--json ./real.jsonl: is not the JSON of cdgen corpus-stats"),
        (["real.jsonl", "--json", "real.jsonl/x"], 2, "real.jsonl is not a folder"),
        ([], 2, "the following arguments are required: CORPUS"),
    ],
)
def test_bad_requests(
    argv: list[str], code: int, reason: str, corpora: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["corpus-stats", *argv]) == code
    output = capsys.readouterr()
    assert output.err.startswith("cdgen: error: ") and reason in output.err and output.err.count("\n") == 1
    assert output.out == ""


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (("bare", None), "bare: has no tokenizer, which scoring texts needs"),
        (("good", "other"), "the models do not share a vocabulary"),
        (("good", "typo"), "typo: no such folder or file"),
    ],
)
def test_models_that_do_not_fit(
    models: tuple[str, str | None],
    reason: str,
    corpora: Path,
    folders: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = models
    options = ["--good", str(folders[good]), *(["--bad", str(folders.get(bad, bad))] if bad else [])]
    assert main(["corpus-stats", "real.jsonl", *options]) == 2
    error = capsys.readouterr().err
    assert reason in error and error.count("\n") == 1
