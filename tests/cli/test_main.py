"""The entry point: any error is one line without a traceback, whatever the terminal, and Ctrl-C or a closed pipe is
handled."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cdgen
from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.parser import load_ops
from cdgen.errors import CorpusError, InputError, printable

KEPT = "; finished work is kept, rerun the same command to resume"


@pytest.fixture
def failing_info(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Return a function that makes `cdgen info` raise an exception."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])

    def fail(error: BaseException) -> None:
        def run(args: object) -> int:
            raise error

        monkeypatch.setattr("cdgen.cli.info.run", run)

    return fail


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("a: is bad"), 2, "a: is bad"),
        (CorpusError("o: is locked"), 1, "o: is locked"),
        (PermissionError(13, "Permission denied", "f.txt"), 1, "f.txt: Permission denied"),
        (OSError(13, "Permission denied", b"caf\xe9"), 1, "caf\\udce9: Permission denied"),
        (OSError("no number"), 1, "unexpected OSError: no number; add --debug for the traceback"),
        (KeyError("tokens"), 1, "unexpected KeyError: 'tokens'; add --debug for the traceback"),
        (RecursionError("too\ndeep"), 1, "unexpected RecursionError: too; add --debug for the traceback"),
        (MemoryError(), 1, "out of memory"),
        (AssertionError(), 1, "unexpected AssertionError: AssertionError; add --debug for the traceback"),
    ],
)
def test_any_error_is_one_line(
    error: Exception, code: int, message: str, failing_info: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_info(error)
    assert main(["info"]) == code
    assert capsys.readouterr().err == f"cdgen: error: {message}\n"


@pytest.mark.parametrize("error", [KeyError("tokens"), InputError("a: is bad")])
def test_debug_prints_the_traceback_as_well(
    error: Exception, failing_info: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_info(error)
    for argv, value in ((["info", "--debug"], ""), (["--debug", "info"], ""), (["info"], "1")):
        monkeypatch.setenv("CDGEN_DEBUG", value)
        assert main(argv) in (1, 2)
        shown = capsys.readouterr().err
        assert "Traceback (most recent call last)" in shown and shown.splitlines()[-1].startswith("cdgen: error: ")


def test_what_comes_from_a_file_cannot_control_the_terminal(
    failing_info: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    failing_info(InputError("field 'a\x1b[2J\x07\u202eb\ud800\x9b' né \u2028 \u200d"))
    assert main(["info"]) == 2
    assert capsys.readouterr().err == "cdgen: error: field 'a\\x1b[2J\\x07\\u202eb\\ud800\\x9b' né \u200d\n"
    failing_info(InputError("x" * 34_000))
    assert main(["info"]) == 2 and len(capsys.readouterr().err) < 1100


def test_warnings_cannot_control_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(args: object) -> int:
        logging.getLogger("cdgen").warning("file %s\nsecond line", "a\x1b[2J")
        return 0

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr("cdgen.cli.info.run", run)
    assert main(["info"]) == 0
    assert capsys.readouterr().err == "cdgen: file a\\x1b[2J second line\n"


def test_printable_keeps_ordinary_text() -> None:
    for text in ("سلام می‌کنم", "né \N{COMBINING ACUTE ACCENT}", "日本語", "👩‍🔬"):
        assert printable(text) == text


def cdgen_process(*argv: object, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "cdgen", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, env=os.environ | environment, **pipes)


@pytest.mark.slow
@pytest.mark.parametrize("argv", [("info",), ("models", "ls", "none"), ("generate", "--good", "né", "--seeds", "é")])
@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_any_encoding_of_the_terminal(argv: tuple[str, ...], environment: dict[str, str], tmp_path: Path) -> None:
    out = ("--method", "ancestral", "--out", tmp_path / "ö") if argv[0] == "generate" else ()
    process = cdgen_process(*argv, *out, CDGEN_CACHE=str(tmp_path / "café"), **environment)
    printed, error = process.communicate()
    assert process.returncode == (0 if argv == ("info",) else 2), error
    assert b"Traceback" not in error and error.count(b"\n") == (0 if argv == ("info",) else 1)
    assert argv != ("info",) or b"cache folder" in printed


@pytest.mark.slow
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("argv", "code"), [(("info",), 0), (("run", "tiny", "--dry-run"), 141)])
def test_a_reader_that_has_gone(argv: tuple[str, ...], code: int, unbuffered: str) -> None:
    """It is no error, but a command that does more than print was cut short."""
    process = cdgen_process(*argv, PYTHONUNBUFFERED=unbuffered)
    assert process.stdout and process.stderr
    process.stdout.close()
    with process.stderr as stream:
        assert stream.read() == b""
    assert process.wait() == (code if unbuffered else 0), "a buffer is flushed when the work is done"


@pytest.mark.parametrize(("command", "resumes"), [(["info"], False), (["run", "tiny", "--dry-run"], True)])
def test_only_commands_that_keep_something_say_so_after_ctrl_c(
    command: list[str], resumes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(code: int) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("cdgen.cli.app._flushed", interrupt)
    assert main(command) == 130
    assert capsys.readouterr().err == f"cdgen: interrupted{KEPT if resumes else ''}\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_becomes_another_error(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example, transformers raises ModuleNotFoundError if a lazy import fails for any reason."""

    def run(args: object) -> int:
        try:
            signal.raise_signal(number)
        except KeyboardInterrupt as error:
            raise ModuleNotFoundError("Could not import module") from error
        return 0

    monkeypatch.setattr("cdgen.cli.info.run", run)
    handlers = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    assert main(["info"]) == 128 + number
    assert capsys.readouterr().err == "cdgen: interrupted\n"
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == handlers


@pytest.mark.slow
@pytest.mark.parametrize("command", ["info", "train", "generate"])
def test_ctrl_c_during_the_imports(command: str, tmp_path: Path) -> None:
    argv = {
        "info": (),
        "train": ("--corpus", "c", "--tokenizer", "t"),
        "generate": ("--good", "g", "--method", "ancestral", "--seeds", "s"),
    }[command]
    out = ("--out", tmp_path / "out") if argv else ()
    for seconds in (0.15, 0.4, 0.7, 1.0, 1.5, 2.0):
        process = cdgen_process(command, *argv, *out)
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
        # Python ends itself with SIGINT, which shells show as 130 too, if exec() was interrupted in an import.
        assert process.returncode in (0, 2, 130, -signal.SIGINT), error
        assert b"Traceback" not in error and error.count(b"\n") <= 1, error


@pytest.mark.parametrize("value", ["-1e39", "-20", "-.5", "-1.5E-3", "-inf"])
def test_negative_numbers_are_values(value: str) -> None:
    args = build_parser().parse_args(
        ["generate", "--good", "g", "--seeds", "s", "--out", "o", "--outside-head", value, "--contrast-strength", value]
    )
    assert args.outside_head == args.contrast_strength == float(value)


def test_a_value_that_starts_with_a_dash() -> None:
    with pytest.raises(InputError, match=r"--stop: expected one argument \(write OPTION=VALUE if the value starts"):
        build_parser().parse_args(["generate", "--good", "g", "--seeds", "s", "--out", "o", "--stop", "-x"])
    args = build_parser().parse_args(["generate", "--good", "g", "--seeds", "s", "--out", "o", "--stop=-x"])
    assert args.stop == ["-x"]


def test_options_are_not_abbreviated() -> None:
    with pytest.raises(InputError, match="unrecognized arguments: --see"):
        build_parser().parse_args(["generate", "--good", "g", "--seeds", "s", "--out", "o", "--see", "3"])


@pytest.mark.parametrize("value", ["0", "-1", "1.5", "many", "100000"])
def test_a_number_of_threads(value: str) -> None:
    with pytest.raises(InputError, match="--threads"):
        build_parser().parse_args(["generate", "--good", "g", "--seeds", "s", "--out", "o", "--threads", value])


def test_errors_are_public() -> None:
    assert cdgen.InputError is InputError and cdgen.CorpusError is CorpusError


@pytest.mark.parametrize(
    ("typed", "stop"), [(r"\n", "\n"), (r"a\tb\r", "a\tb\r"), (r"\\n", r"\n"), (r"\d", r"\d"), ("\n", "\n"), ("é", "é")]
)
def test_escapes_in_a_stop_string(typed: str, stop: str) -> None:
    args = build_parser().parse_args(["generate", "--good", "g", "--seeds", "s", "--out", "o", "--stop", typed])
    assert args.stop == [stop]


@pytest.mark.parametrize("command", ["prepare", "run"])
def test_summaries_cannot_control_the_terminal(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(f"Document {number}." for number in range(80)))
    out = tmp_path / "b\x1b[2J"
    recipe = (
        f"[prepare]\nsources = ['{tmp_path / 'a.txt'},by=blank']\n[bad]\ndropout = 0.5\n[generate]\nmax_tokens = 5\n"
    )
    (tmp_path / "r.toml").write_text(recipe)
    argv = {"prepare": [f"{tmp_path / 'a.txt'},by=blank", "--test", "0"], "run": [tmp_path / "r.toml", "--dry-run"]}
    assert main([command, *map(str, argv[command]), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed and "b\\x1b[2J" in printed


def test_threads_and_a_warning_about_the_slow_path(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    threads = torch.get_num_threads()
    try:
        load_ops(3)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)
    monkeypatch.delenv("CDGEN_IMPL", raising=False)
    for name, warnings in (("cpp", 0), ("reference", 1)):
        caplog.clear()
        monkeypatch.setattr("cdgen_kernels.implementation", lambda device, name=name: (name, "a reason"))
        load_ops(device="cpu")
        assert len(caplog.messages) == warnings
    assert caplog.messages == ["the slow reference implementation is used, because a reason"]
    monkeypatch.setenv("CDGEN_IMPL", "reference")  # it was asked for
    caplog.clear()
    load_ops(device="cpu")
    assert not caplog.messages
