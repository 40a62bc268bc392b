"""The command `cdgen bench`."""

import json
from pathlib import Path

import pytest
import torch

from cdgen.bench import methods, sampling
from cdgen.cli import main


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare one method, compile nothing, and do not measure the bandwidth."""
    monkeypatch.setattr(sampling, "METHODS", methods.METHODS[1:2])
    monkeypatch.setattr(sampling, "copy_bandwidth", lambda timer, device: 1e9)
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: function)


def test_it_prints_a_table_and_writes_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert main(["bench", "--vocab-size", "60", "90", "--batch-size", "2", "--device", "cpu", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "min-p 0.1, float32 [2, 60]" in printed and "min-p 0.1, float32 [2, 90]" in printed
    assert "copy: 1.0 GB/s" in printed and "torch eager, torch.compile" in printed
    record = json.loads(file.read_text(encoding="utf-8"))
    assert [case["vocab_size"] for case in record["cases"]] == [60, 90]
    assert {"cdgen_kernels", "transformers"} <= {one["name"] for one in record["cases"][0]["timed"]}


def test_a_wrong_op_is_an_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sampling, "fault_of_fused", lambda *arguments: "2 of 2 tokens differ")
    assert main(["bench", "--vocab-size", "60", "--batch-size", "2", "--device", "cpu"]) == 1
    assert "wrong result, not timed: 2 of 2 tokens differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--vocab-size", "10"), "--vocab-size 10: must be 50 to"),
        (("--batch-size", "0"), "--batch-size 0: must be 1 to"),
        (("--json", "."), "--json .: is not the name of a file"),
        (("--json", "notes.txt"), "--json notes.txt: is not the JSON of cdgen bench, and would be replaced"),
        (("--device", "tpu"), "cannot be used here"),
    ],
)
def test_bad_options_are_refused(
    option: tuple[str, str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("Dear diary", encoding="utf-8")
    assert main(["bench", *option]) == 2
    assert message in capsys.readouterr().err
