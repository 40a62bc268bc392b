"""The benchmark that compares a step with that of another checkout."""

import sys
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks.cpu import checkouts
from benchmarks.cpu.checkouts import NEW, PROMPTS, STEPS, TURNS, check, compare
from benchmarks.cpu.engine_workers.worker import Settings, Worker

ROOT = Path(checkouts.__file__).parents[2]


class FakeWorker:
    """Answers like a worker whose steps take 1, 2, 3 and so on times `seconds`; logs the requests."""

    def __init__(self, seconds: float, token: int, log: list[str]) -> None:
        self.seconds, self.token, self.log, self.count = seconds, token, log, 0

    def ask(self, name: str, *arguments: Any) -> Any:
        self.log.append(f"{name} {self.token}")
        if name == "greedy":
            return [[self.token] * PROMPTS] * NEW
        if name == "steps":
            self.count += arguments[0]
            return [self.seconds * (self.count - at) for at in reversed(range(arguments[0]))]
        return None


def fakes(*tokens: int) -> tuple[list[Worker], list[str]]:
    log: list[str] = []
    return [cast(Worker, FakeWorker(1.0 + at, token, log)) for at, token in enumerate(tokens)], log


def test_steps_are_timed_in_turns_without_the_warm_up() -> None:
    workers, log = fakes(0, 1)
    assert compare(workers, STEPS) == [(TURNS + 3) / 2, TURNS + 3]  # the median of 2 to TURNS + 1
    assert log == ["start 0", "start 1", *["steps 0", "steps 1"] * (TURNS + 1)]
    workers, _ = fakes(0)
    assert compare(workers, 1) == [STEPS + (TURNS * STEPS + 1) / 2]


def test_greedy_tokens_must_be_equal_in_float32(capsys: pytest.CaptureFixture[str]) -> None:
    check(fakes(5, 5)[0], "float32")
    check(fakes(5, 6)[0], "bfloat16")
    assert capsys.readouterr().out == "equal greedy tokens: 28 of 28\nequal greedy tokens: 0 of 28\n"
    with pytest.raises(SystemExit, match="different greedy tokens"):
        check(fakes(5, 6)[0], "float32")


def test_a_folder_without_the_package_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(FakeWorker):
        about = "/elsewhere"

        def __init__(self, *_: Any) -> None: ...

    monkeypatch.setattr(checkouts, "Worker", Elsewhere)
    for name in ("cdgen", "benchmarks"):
        with pytest.raises(SystemExit, match=f"is not a checkout: it has no folder {name}"):
            checkouts.start(tmp_path, Settings("paper", "float32", 1, 1, 30))
        (tmp_path / name).mkdir()
    with pytest.raises(SystemExit, match="is not a checkout: the worker imports cdgen from /elsewhere"):
        checkouts.start(tmp_path, Settings("paper", "float32", 1, 1, 30))


@pytest.mark.slow
def test_a_worker_makes_steps() -> None:
    worker = Worker("step", sys.executable, Settings("paper", "float32", 1, 2, 30), sys.path)
    try:
        assert Path(worker.about) == ROOT
        tokens = worker.ask("greedy", [[5, 6], [7, 8]], 3)
        assert [len(step) for step in tokens] == [2, 2, 2]
        for batch in (1, 2):
            worker.ask("start", batch, 3)
            assert len(worker.ask("steps", 3)) == 3
    finally:
        worker.close()
