"""Ctrl-C and SIGTERM while a model is trained: acknowledged at once, and never lost."""
# ruff: noqa: F401, F811 (fixtures are imported)

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from cdgen import TrainConfig, train
from cdgen.cli import main
from cdgen.storage import runs
from cdgen.storage.progress import Silent
from cdgen.training import trainer
from cdgen.training.signals import Interrupted
from tests.helpers.small_runs import command, data, settings


class Sending(Silent):
    """Sends signals to this process when the progress of training reaches a place.

    Args:
        place: "micro-batch", or "step" for the time after a step's batch and before its checkpoint.
        count: number of times that the place is reached before the signals are sent.
        signals: the signals.
    """

    def __init__(self, place: str, count: int, *signals: int) -> None:
        self._place, self._count, self._signals = place, count, signals
        self._left = -1

    def begin(self, *arguments: Any, unit: str, **options: Any) -> None:
        """Count steps only: a corpus that is not tokenised yet is shown before them, in bytes."""
        self._left = self._count if unit == "steps" else -1

    def tokens(self, count: int) -> None:
        """Send the signals within a step."""
        self._reach("micro-batch")

    def advance(self, units: int) -> None:
        """Send the signals after a step."""
        self._reach("step")

    def _reach(self, place: str) -> None:
        self._left -= place == self._place
        if place == self._place and self._left == 0:
            for number in self._signals:
                signal.raise_signal(number)


def steps_of(out: Path) -> list[int]:
    return [one["step"] for one in json.loads((out / "run.json").read_text())["checkpoints"]]


@pytest.mark.parametrize("place", ["micro-batch", "step"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_last_step_is_not_swallowed(place: str, number: int, settings: Any, tmp_path: Path) -> None:
    """The finished run is saved, and the caller learns of the signal."""
    given = settings(tmp_path / "run", steps=2, warmup_steps=1)
    last = 4 if place == "micro-batch" else 2  # a step has two micro-batches
    with pytest.raises(Interrupted, match="saved as step 2") as caught:
        train(TrainConfig(**given), Sending(place, last, number))
    assert caught.value.number == number and steps_of(tmp_path / "run") == [2]
    assert train(TrainConfig(**given)).latest.step == 2, "there is nothing left to do"


def test_a_signal_while_the_last_checkpoint_is_written_is_not_swallowed(settings, tmp_path, monkeypatch) -> None:
    gather = trainer.checkpoints.gather

    def interrupted(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return gather(*arguments)

    monkeypatch.setattr(trainer.checkpoints, "gather", interrupted)
    with pytest.raises(Interrupted, match="saved as step 2") as caught:
        train(TrainConfig(**settings(tmp_path / "run", steps=2, warmup_steps=1)))
    assert caught.value.number == signal.SIGTERM and steps_of(tmp_path / "run") == [2]


def test_the_first_signal_is_acknowledged_at_once(settings, tmp_path, caplog) -> None:
    """The second micro-batch of the step is still to come."""
    seen: list[list[str]] = []

    class Watching(Sending):
        def tokens(self, count: int) -> None:
            super().tokens(count)
            seen.append(list(caplog.messages))

    with pytest.raises(Interrupted, match="saved as step 1"):
        train(
            TrainConfig(**settings(tmp_path / "run", steps=5, warmup_steps=1)),
            Watching("micro-batch", 1, signal.SIGINT),
        )
    said = "stopping after this step; press Ctrl-C again to stop now"
    assert seen == [[said], [said]] and caplog.messages == [said]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_stops_at_once(number: int, settings: Any, tmp_path: Path) -> None:
    given = settings(tmp_path / "run", steps=4, save_every=1, warmup_steps=1)
    with pytest.raises(Interrupted, match="finished checkpoints are kept") as caught:
        train(TrainConfig(**given), Sending("micro-batch", 5, number, number))
    assert caught.value.number == number and steps_of(tmp_path / "run") == [1, 2]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, "the handlers are restored"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_ends_with_the_signals_exit_code(number, settings, tmp_path, monkeypatch, capfd) -> None:
    """So `cdgen run` does not start the stages that follow."""
    monkeypatch.setattr("cdgen.storage.progress.choose", lambda quiet: Sending("step", 2, number))
    argv = list(map(str, command(settings(tmp_path / "run", steps=2, warmup_steps=1))))
    assert main(argv) == 128 + number
    last = capfd.readouterr().err.splitlines()[-1]
    assert last == "cdgen: interrupted; saved as step 2, rerun the same command to resume"
    assert runs.resolve(f"{tmp_path / 'run'}@2")
    monkeypatch.undo()
    assert main(argv) == 0
