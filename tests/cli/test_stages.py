"""What `cdgen run` records about its stages: when they were finished, and how long all attempts took."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from cdgen.cli.stages import Stage, run_stages
from cdgen.storage import manifest as manifests
from cdgen.storage import stages as stage_files

PLANNED = (Stage("good", ("train", "--steps", "4")), Stage("model", ("train", "--steps", "5"), ("good",)))


class Commands:
    """Stands for the commands of cdgen, each of which takes ten seconds of a clock that this class holds."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now = folder, 0.0
        self.failing: dict[str, BaseException | int] = {}  # by number of steps
        self.seen: list[tuple[str, ...]] = []  # names in stages.json while each command ran
        monkeypatch.setattr("cdgen.cli.stages.time.monotonic", lambda: self.now)

    def run(self, planned: Sequence[Stage] = PLANNED) -> int:
        return run_stages(planned, self.folder, "tiny", self.execute, lambda _: None)

    def execute(self, argv: list[str]) -> int:
        self.now += 10
        self.seen.append(tuple(self.entries()))
        failure = self.failing.pop(argv[2], None)
        if isinstance(failure, BaseException):
            raise failure
        if failure is not None:
            return failure
        folder = self.folder / ("good" if argv[2] == "4" else "model")
        (folder / "step_000004").mkdir(parents=True, exist_ok=True)
        run = {"config": {"argv": argv}, "inputs": {}, "environments": []}
        run["checkpoints"] = [{"step": 4, "loss": 2.5, "perplexity": 12.5, "files": {}}]
        (folder / "run.json").write_text(json.dumps(manifests.new("run") | run))
        return 0

    def entries(self) -> dict[str, stage_files.StageEntry]:
        found = stage_files.read(self.folder)
        assert found is not None and found["recipe"] == "tiny"
        return {entry["name"]: entry for entry in found["stages"]}

    def seconds(self) -> list[float]:
        return [entry["seconds"] for entry in self.entries().values()]

    def finished(self) -> list[bool]:
        return [stage_files.is_finished(self.folder, entry) for entry in self.entries().values()]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path, monkeypatch)


def test_the_time_of_all_attempts_is_recorded(commands: Commands) -> None:
    commands.failing = {"5": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        commands.run()
    assert commands.seen == [("good", "model")] * 2, "all stages are listed before the first one runs"
    assert commands.seconds() == [10, 10] and commands.finished() == [True, False]
    commands.failing = {"5": 130}
    assert commands.run() == 130
    assert commands.seconds() == [10, 20] and commands.entries()["model"]["finished"] is None
    assert commands.run() == 0
    assert commands.seconds() == [10, 30] and commands.finished() == [True, True]
    assert commands.entries()["model"]["finished"].endswith("+00:00")
    assert commands.run() == 0 and commands.seconds() == [10, 30], "both stages were skipped"


def test_a_stage_that_has_changed_is_unfinished(commands: Commands) -> None:
    commands.run()
    changed = (PLANNED[0], Stage("model", ("train", "--steps", "6"), ("good",)))
    commands.failing = {"6": 1}
    assert commands.run(changed) == 1
    assert commands.finished() == [True, False] and commands.seconds() == [10, 20]
    assert commands.run(changed) == 0
    assert commands.finished() == [True, True] and commands.seconds() == [10, 30]


def test_finished_stages_of_an_earlier_recipe_are_remembered(commands: Commands) -> None:
    commands.run()
    assert commands.run(PLANNED[:1]) == 0
    assert commands.finished() == [True, True]
    assert commands.run() == 0 and commands.seconds() == [10, 10], "it was skipped"
