"""Calls in a thread: their order, what waits, and what an error does."""

import threading
from collections.abc import Callable

import pytest

from cdgen.corpus.background import Background

LIMIT = 60  # seconds after which a test that waits for something fails


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("cdgen-background")]


def check_until_it_raises(background: Background[int]) -> None:
    waiting = threading.Event()
    for _ in range(LIMIT * 1000):
        background.check()
        waiting.wait(0.001)
    pytest.fail("the error was not noticed")


def test_calls_are_made_in_order_and_results_come_in_the_callers_thread() -> None:
    results, where = [], set()

    def take(result: int) -> None:
        results.append(result)
        where.add(threading.get_ident())

    with Background(lambda number: number + (threading.get_ident() == caller) * 100, take) as background:
        caller = threading.get_ident()
        for number in range(9):
            background.call(number)
    assert results == list(range(9)) and where == {caller} and not threads()


def test_a_call_waits_while_two_others_have_not_ended() -> None:
    go, results = threading.Semaphore(0), []
    with Background(lambda number: go.acquire(timeout=LIMIT) and number, results.append) as background:
        background.call(0)
        background.call(1)
        background.check()
        assert results == []
        go.release()
        background.call(2)
        assert results == [0]
        go.release(2)
    assert results == [0, 1, 2]


def failing(number: int) -> int:
    if number == 1:
        raise OSError(28, "No space left on device")
    return number


@pytest.mark.parametrize(
    "notice",
    [
        check_until_it_raises,
        lambda background: [background.call(number) for number in (2, 3, 4)],
        lambda background: None,  # at the end of the context
    ],
)
def test_an_error_ends_the_context(notice: Callable[[Background[int]], None]) -> None:
    results: list[int] = []
    with pytest.raises(OSError, match="No space left"), Background(failing, results.append) as background:
        background.call(0)
        background.call(1)
        notice(background)
    assert results == [0] and not threads()


def test_an_interrupt_completes_the_call_that_is_being_made() -> None:
    started, go, made = threading.Event(), threading.Event(), []

    def make(number: int) -> None:
        started.set()
        assert go.wait(LIMIT)
        made.append(number)

    with pytest.raises(KeyboardInterrupt), Background(make, lambda _: None) as background:
        background.call(0)
        background.call(1)
        assert started.wait(LIMIT)
        threading.Timer(0.05, go.set).start()
        raise KeyboardInterrupt
    assert made == [0] and not threads()
