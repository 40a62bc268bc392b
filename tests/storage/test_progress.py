"""Progress of long commands: the rate and the time left."""

import io
import logging
import re
import sys

import pytest
from rich.console import Console

from cdgen.cli.app import _Handler
from cdgen.storage import progress
from cdgen.storage.progress import ITEMS, Bar, Lines, Pace, Silent, choose


class Clock:
    """Replaces the time that progress is measured with."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        patch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def seconds(line: str) -> int | None:
    """Return the time left that a line shows."""
    found = re.search(r"(\d+):(\d\d):(\d\d) left", line)
    return found and int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3])


def test_the_time_left_never_climbs_between_batches(clock: Clock) -> None:
    """Batches of 64 documents with 400 tokens each; the documents of a batch end together."""
    stream = io.StringIO()
    lines = Lines(stream, every=0)
    lines.begin(320, unit="documents", verb="to write", tokens_per_unit=400)
    for step in range(5 * 400):
        clock.now += 0.1
        lines.tokens(64)
        if step % 400 == 399:
            lines.advance(64)
    left = [x for line in stream.getvalue().splitlines() if (x := seconds(line)) is not None]
    assert left == sorted(left, reverse=True) and left[0] == 200 and left[-1] == 0
    assert len(left) == 2000 + 4, "it is known from the first step on"


def test_documents_that_end_early_shorten_the_time_left(clock: Clock) -> None:
    """Batches of 64 documents of 100 tokens, where 400 are possible: the estimate approaches the truth from above."""
    pace = Pace(640, 0, 400)
    left = []
    for step in range(1000):
        clock.now += 1
        pace.count(64)
        if step % 100 == 99:
            pace.advance(64)
        left.append(pace.seconds_left())
    true = [1000 - step - 1 for step in range(1000)]
    assert all(found is None or found >= due - 1e-6 for found, due in zip(left, true, strict=True))
    assert left[500] is not None and left[500] < 1.5 * true[500]
    assert left[-1] is None, "nothing is left"


def test_a_pause_does_not_raise_the_time_left(clock: Clock) -> None:
    """No tokens are counted while a model is evaluated."""
    pace = Pace(10, 0, 100)
    clock.now += 10
    pace.count(100)
    pace.advance(1)
    before = pace.seconds_left()
    clock.now += 1000
    assert pace.seconds_left() == before == 90


def test_units_of_an_earlier_command_do_not_count_towards_the_rate(clock: Clock) -> None:
    pace = Pace(10, 8, 100)
    clock.now += 10
    pace.count(50)
    assert pace.per_second(pace.tokens) == 5 and pace.seconds_left() == 30


def test_the_time_left_follows_from_units_if_tokens_are_not_expected(clock: Clock) -> None:
    pace = Pace(10, 0, None)
    assert pace.seconds_left() is None
    clock.now += 10
    pace.advance(2)
    assert pace.seconds_left() == 40


def test_the_words_beside_the_rate_are_shown_when_they_change(clock: Clock) -> None:
    stream = io.StringIO()
    lines = Lines(stream, every=5)
    lines.begin(2, unit="steps", verb="to train", tokens_per_unit=10)
    lines.about("evaluating: block 8 of 80")
    assert "evaluating" not in stream.getvalue(), "it is not time yet"
    clock.now += 6
    lines.about("evaluating: block 16 of 80")
    assert stream.getvalue().splitlines()[-1] == "0 of 2 steps, 0 tokens/s, evaluating: block 16 of 80"


def test_a_bar_shows_the_same_time_left_and_takes_text_literally(clock: Clock) -> None:
    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=120))
    bar.begin(4, unit="documents", verb="to write", tokens_per_unit=100)
    clock.now += 10
    bar.tokens(100)
    bar.about("[bold]loss")
    bar.note("shard [1]: done")
    clock.now += 1
    bar.tokens(0)
    bar.close()
    assert "[bold]loss" in stream.getvalue() and "shard [1]: done" in stream.getvalue()
    assert "0:00:33" in stream.getvalue()


def test_a_warning_appears_above_the_bar() -> None:
    """Otherwise the next update of the bar overwrites it."""
    handler = _Handler(sys.stderr)
    stream = io.StringIO()
    bar = Bar(Console(file=stream, force_terminal=True, width=120))
    bar.begin(4, unit="steps", verb="to train")
    handler.emit(logging.makeLogRecord({"msg": "stopping after this step"}))
    bar.close()
    assert "stopping after this step" in stream.getvalue()


def test_the_rate_of_items(clock: Clock) -> None:
    pace = Pace(100, 20, None)
    clock.now += 4
    pace.advance(10)
    assert pace.rate(ITEMS) == "2.5 items/s" and pace.rate("steps") == "0 tokens/s"
    pace.advance(50)
    assert pace.rate(ITEMS) == "15 items/s"


def test_a_notebook_shows_a_bar_if_rich_can_draw_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """rich draws it with ipywidgets, and only warns if they are missing."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(choose(quiet=False), Lines) and isinstance(choose(quiet=True), Silent)
    monkeypatch.setitem(sys.modules, "IPython", sys)
    assert isinstance(choose(quiet=False), Lines), "IPython on a terminal"
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: None)
    assert isinstance(choose(quiet=False), Lines)
    monkeypatch.setattr(progress.importlib.util, "find_spec", lambda name: name)
    assert isinstance(choose(quiet=False), Bar)
