"""The command `cdgen compare`."""

import json
from pathlib import Path

import pytest

from cdgen.cli import main
from tests.helpers.results import Scored, correct, write_results


@pytest.fixture
def results(tmp_path: Path) -> Path:
    shares = {"plain": 0.5, "contrastive": 0.6}
    return write_results(tmp_path / "results", [Scored(name, "blimp", correct(one)) for name, one in shares.items()])


def test_it_prints_and_writes_the_comparison(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["compare", str(results), "--baseline", "plain", "--out", str(tmp_path / "out"), "--resamples", "200"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "contrastive: better than plain. Mean relative change over " in printed
    assert "note: there is one training run per method" in printed
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert (found["baseline"], found["resamples"]) == ("plain", 200)
    assert main(argv) == 0  # a rerun replaces its own output
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "choose --baseline LABEL from plain, contrastive"),
        (["--baseline", "gold"], "baseline = 'gold': is not among the labels of the results: plain, contrastive"),
        (["--baseline", "plain", "--resamples", "0"], "resamples = 0: must be 100 to 100000"),
        (["--baseline", "plain", "--confidence", "2"], "confidence = 2.0: must be 0.5 to 0.999"),
        (["--baseline", "plain", "--confidence", "nan"], "confidence = nan: must be 0.5 to 0.999"),
        (["--baseline", "plain", "--checkpoint", "first"], "checkpoint = 'first': use best or latest"),
    ],
)
def test_bad_options_are_one_line(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["compare", str(results), *options, "--out", str(tmp_path / "out")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "out").exists()


def test_folders_that_cannot_be_used(results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(tmp_path)]) == 2
    assert "holds no results of an evaluation (it has no results.json)" in capsys.readouterr().err
    assert main(["compare", str(results), "--baseline", "plain", "--out", str(results)]) == 1
    assert "describes results of an evaluation, not a comparison; choose another folder" in capsys.readouterr().err
