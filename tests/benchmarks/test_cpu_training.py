"""The training benchmark's loops, which run in threads of their own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.cpu import bench_training
from benchmarks.cpu.bench_training import Stepwise, Trained


def failing(folder: Path, steps: int, after_step: Callable[[], None]) -> Trained:
    for _ in range(steps):
        after_step()
    raise ValueError("out of data")


def working(folder: Path, steps: int, after_step: Callable[[], None]) -> Trained:
    for _ in range(steps):
        after_step()
    return Trained([1.0] * steps)


@pytest.mark.parametrize("steps", [0, 2])
def test_a_loop_that_raises_does_not_hang(steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(bench_training.VARIANTS, "failing", failing)
    loop = Stepwise("failing", tmp_path, steps)
    for _ in range(steps):
        loop()
    with pytest.raises(ValueError, match="out of data"):
        loop()


def test_an_error_after_the_last_step_is_raised_with_the_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(bench_training.VARIANTS, "failing", failing)
    loop = Stepwise("failing", tmp_path, 1)
    loop()
    with pytest.raises(ValueError, match="out of data"):
        loop.result()


def test_a_loop_returns_its_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(bench_training.VARIANTS, "working", working)
    loop = Stepwise("working", tmp_path, 2)
    loop(), loop()
    assert loop.result().losses == [1.0, 1.0]
