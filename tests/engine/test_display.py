"""The progress of `generate`: what it counts, where it shows it, and that nothing of it is left behind."""

import io
import threading
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cdgen import ContrastiveLM
from cdgen.errors import InputError
from cdgen.storage.progress import Bar, Lines
from tests.helpers.sampling import free

PROMPTS = [[5, 6, 7], [9] * 16]


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


def test_continuations_and_tokens_are_counted(lm: ContrastiveLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("cdgen.engine.display.choose", lambda quiet: Lines(stream, every=0.0))
    requests = lm.generate(PROMPTS, free(n=3), progress=True)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "6 continuations to write, 0 already done"
    assert lines[-1].startswith("6 of 6 continuations, ") and lines[-1].endswith(" tokens/s")
    assert [len(request.outputs) for request in requests] == [3, 3]
    assert requests == lm.generate(PROMPTS, free(n=3))


def test_it_is_shown_on_standard_error_if_it_is_requested(
    lm: ContrastiveLM, capsys: pytest.CaptureFixture[str]
) -> None:
    for nothing in (None, False):
        lm.generate(PROMPTS, free(), progress=nothing)
    assert capsys.readouterr() == ("", "")
    lm.generate(PROMPTS, free(), progress=True)
    assert capsys.readouterr() == ("", "2 continuations to write, 0 already done\n")


def test_a_bar_disappears_after_an_error(lm: ContrastiveLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=100))
    monkeypatch.setattr("cdgen.engine.display.choose", lambda quiet: bar)
    before = set(threading.enumerate())

    def interrupted(*rest: Any, on_tokens: Any, **more: Any) -> None:
        on_tokens(5)
        assert set(threading.enumerate()) > before, "the bar is drawn by a thread"
        raise KeyboardInterrupt

    monkeypatch.setattr(lm, "continue_sequences", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lm.generate(PROMPTS, free(), progress=True)
    for thread in set(threading.enumerate()) - before:
        thread.join(timeout=10)
        assert not thread.is_alive()
    assert "continuations" in stream.getvalue() and stream.getvalue().endswith("\x1b[2K"), "the line is erased"


def test_other_values_are_refused(lm: ContrastiveLM) -> None:
    with pytest.raises(InputError, match=r"^progress = 5: use True, False or a function that takes a number of tokens"):
        lm.generate(PROMPTS, free(), progress=5)
