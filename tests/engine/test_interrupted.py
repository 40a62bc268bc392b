"""Ctrl-C: a call that ends with KeyboardInterrupt leaves the object usable."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.static_backend import StaticBackend
from tests.test_layout import ROOT


@pytest.mark.parametrize("static", [False, True], ids=["paged", "static"])
def test_a_signal_between_two_steps(static: bool, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of the interrupted call is freed, and its place is free for the next one."""
    if static:
        monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
    lm = ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=4)
    prompts, params = ["The fox", [5, 6, 7]], SamplingParams(n=3, max_tokens=6, ignore_eos=True)
    closed: list[Any] = []
    kind: Any = StaticBackend if static else PagedBackend
    close = kind.close
    monkeypatch.setattr(kind, "close", lambda self: (closed.append(self), close(self)))
    expected = lm.generate(prompts, params)
    closed.clear()
    with pytest.raises(KeyboardInterrupt):
        lm.generate(prompts, params, progress=lambda tokens: signal.raise_signal(signal.SIGINT))
    assert len(closed) == 1
    assert lm.generate(prompts, params) == expected


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["paged", "static"])
def test_signals_at_random_times(backend: str, folders: dict[str, Path]) -> None:
    """In generate, chat and explain. The next call returns what it returned before."""
    argv = [sys.executable, "-m", "tests.helpers.interrupted", str(folders["good"]), backend, "6"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and done.stdout == "usable\n", done.stderr
