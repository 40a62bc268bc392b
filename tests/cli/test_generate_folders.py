"""`cdgen generate` and its folders: checks before models are loaded, folders of other kinds, failed runs."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main

Arguments = list[Any]


@pytest.fixture
def argv(folders: dict[str, Path], tmp_path: Path) -> Arguments:
    (tmp_path / "s.txt").write_text("The fox\nOnce upon\n")
    models = ["--good", folders["good"], "--bad", folders["bad"]]
    return ["generate", *models, "--seeds", tmp_path / "s.txt", "--max-tokens", 3, "--quiet", "--out", tmp_path / "out"]


def run(*argv: Any) -> int:
    return main(list(map(str, argv)))


def test_everything_else_is_checked_before_models_are_loaded(
    argv: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("cdgen.engine.model_pair.load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "manifest.json").write_text('{"kind": "tokenizer"}')
    for extra, message in (
        (["--seeds", tmp_path / "none.txt"], "none.txt: no such seeds file"),
        (["--seeds", tmp_path / "empty.txt"], "seeds: none in"),
        (["--shard-size", 0], "--shard-size = 0"),
        (["--prefix-tokens", 0], "--prefix-tokens = 0"),
        (["--chunk-words", 0], "--chunk-words = 0"),
        (["--batch-size", 0], "--batch-size = 0"),
        (["--kv-cache-gb", "nan"], "--kv-cache-gb nan: must be more than 0"),
        (["--kv-cache-gb", "inf"], "--kv-cache-gb inf"),
        (["--kv-cache-gb", -1], "--kv-cache-gb -1.0"),
        (["--out", ""], "out = '': is empty; name a folder"),
    ):
        assert run(*argv, *extra) == 2, extra
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1, error
    assert run(*argv, "--out", tmp_path / "tokenizer") == 1
    assert "describes a tokenizer, not a generated corpus; choose another folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [[], ["--no-resume"]])
def test_a_prepared_folder_is_refused(
    argv: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str]
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"Document {number}." for number in range(100)))
    prepared = tmp_path / "prepared"
    assert run("prepare", f"{tmp_path / 'a.txt'},by=blank", "--out", prepared, "--quiet") == 0
    before = {path: path.read_bytes() for path in prepared.iterdir()}
    assert run(*argv, *extra, "--out", prepared) == 1
    error = capsys.readouterr().err
    assert "manifest.json: describes a prepared corpus, not a generated corpus" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in prepared.iterdir()} == before
    assert run(*argv) == 0 and run("prepare", tmp_path / "s.txt", "--out", tmp_path / "out", "--overwrite") == 1
    assert "_manifest.json: describes a generated corpus, not a prepared corpus" in capsys.readouterr().err


def test_a_failed_run_does_not_stand_in_the_way(
    argv: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()  # made by the user, so it stays
    with monkeypatch.context() as patched:
        patched.setattr("cdgen.engine.llm.ContrastiveLM.continue_sequences", lambda *_, **__: 1 / 0)
        assert run(*argv) == 1
    assert list((tmp_path / "out").iterdir()) == []
    assert run(*argv, "--max-tokens", 4) == 0, capsys.readouterr().err
    assert run(*argv, "--max-tokens", 5) == 2
    assert "max_tokens = 4, but now max_tokens = 5" in capsys.readouterr().err


def test_paths_that_are_not_utf8(argv: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "caf\udce9"
    try:
        out.mkdir()
    except OSError:
        pytest.skip("this file system requires names in UTF-8")
    assert run(*argv, "--out", out) == 0, capsys.readouterr().err
    (out / "data/train-00000.parquet").unlink()
    assert run(*argv, "--out", out) == 0, capsys.readouterr().err
    assert run(*argv, "--out", out, "--max-tokens", 5) == 2
    assert "caf\\udce9: was started with max_tokens = 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        ["run", "tiny", "--dry-run"],
        ["demo"],
        ["prepare", "s.txt"],
        ["tokenizer", "s.txt"],
        ["train", "--corpus", "s.txt", "--tokenizer", "s.txt"],
    ],
    ids=lambda argv: argv[0],
)
def test_an_empty_out_is_refused(
    argv: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.txt").write_text("The fox\n")
    assert run(*argv, "--out", "") == 2
    assert "out = '': is " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.txt"]


def test_a_folder_without_permission_is_found_before_models_are_loaded(
    argv: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A complete corpus needs no permission."""
    assert run(*argv) == 0
    monkeypatch.setattr("cdgen.storage.folder.os.access", lambda *_: False)  # the tests may run as root
    monkeypatch.setattr("cdgen.storage.folder._delete", lambda path: pytest.fail(f"{path} is to be deleted"))
    assert run(*argv) == 0
    monkeypatch.setattr("cdgen.engine.model_pair.load", lambda *_, **__: pytest.fail("a model was loaded"))
    assert run(*argv, "--out", tmp_path) == 1
    assert "no permission to write to this folder; choose another one" in capsys.readouterr().err


def test_a_name_cannot_control_the_terminal(
    argv: Arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv.remove("--quiet")
    assert run(*argv, "--out", tmp_path / "\x1b[2J") == 0
    monkeypatch.setenv("CDGEN_CACHE", "\x1b[2J")
    assert run("info") == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and printed.count("\\x1b[2J") == 2


def test_sigterm_ends_a_command_like_ctrl_c(argv: Arguments, tmp_path: Path, cdgen_command: Any) -> None:
    argv.remove("--quiet")
    process = cdgen_command.start(*argv, "--max-tokens", 200, "--n", 1000, "--no-repeat-ngram-size", 3)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("out/.cdgen-journal-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process, signal.SIGTERM)
    code, printed = cdgen_command.wait()
    last = printed.splitlines()[-1]
    assert (code, last) == (143, "cdgen: interrupted; finished work is kept, rerun the same command to resume")
