"""How `cdgen run` runs stages: what it records about them, which ones it chooses, and several processes at once."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli.experiment.runner import matching, run_stages
from cdgen.cli.experiment.stage import Stage
from cdgen.errors import InputError
from cdgen.storage import manifest as manifests
from cdgen.storage import stages as stage_files
from cdgen.storage.locks import FileLock

PLANNED = (
    Stage("good", ("train", "--steps", "4", "--out", "OUT/good")),
    Stage("model", ("train", "--steps", "5", "--out", "OUT/model"), ("good",)),
)


class Commands:
    """Stands for the commands of cdgen, each of which takes ten seconds of a clock that this class holds."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.now, self.slept = folder, 0.0, 0
        self.failing: dict[str, BaseException | int] = {}  # the keys are names of stages
        self.executed: list[str] = []
        self.listed: list[tuple[str, ...]] = []  # names in stages.json while each command ran
        self.lines: list[str] = []
        monkeypatch.setattr("cdgen.cli.experiment.runner.time.monotonic", lambda: self.now)
        monkeypatch.setattr("cdgen.cli.experiment.runner.time.sleep", self.sleep)

    def run(self, planned: Sequence[Stage] = PLANNED, only: Sequence[str] = ()) -> int:
        self.executed.clear()
        self.lines.clear()
        return run_stages(
            planned, self.folder, "tiny", self.execute, self.lines.append, matching(planned, only) if only else None
        )

    def execute(self, argv: list[str]) -> int:
        name = argv[-1].rpartition("/")[2]
        self.now += 10
        self.executed.append(name)
        self.listed.append(tuple(self.entries()))
        failure = self.failing.pop(name, None)
        self.write(name, [] if failure else [4])
        if isinstance(failure, BaseException):
            raise failure
        return failure or 0

    def write(self, name: str, steps: Sequence[int]) -> None:
        """Write the folder of a training run with these checkpoints."""
        checkpoints = [{"step": step, "loss": 2.5, "perplexity": 12.5, "files": {}} for step in steps]
        for step in steps:
            (self.folder / name / f"step_{step:06d}").mkdir(parents=True, exist_ok=True)
        (self.folder / name).mkdir(parents=True, exist_ok=True)
        run = {"config": {}, "inputs": {}, "environments": [], "checkpoints": checkpoints}
        (self.folder / name / "run.json").write_text(json.dumps(manifests.new("run") | run))

    def sleep(self, seconds: float) -> None:
        self.slept += seconds > 0

    def entries(self) -> dict[str, stage_files.StageEntry]:
        found = stage_files.read(self.folder)
        assert found is not None and found["recipe"] == "tiny"
        return {entry["name"]: entry for entry in found["stages"]}

    def record(self, name: str) -> stage_files.Record:
        found = self.entries()[name]["record"]
        assert found is not None
        return found

    def seconds(self) -> list[float]:
        return [self.record(name)["seconds"] for name in self.entries()]

    def finished(self) -> list[bool]:
        out = str(self.folder)
        return [stage_files.is_finished(self.folder, entry, out) for entry in self.entries().values()]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    return Commands(tmp_path / "out", monkeypatch)


def test_the_time_of_all_attempts_is_recorded(commands: Commands) -> None:
    commands.failing = {"model": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        commands.run()
    assert commands.listed == [("good", "model")] * 2, "all stages are listed before the first one runs"
    assert commands.seconds() == [10, 10] and commands.finished() == [True, False]
    commands.failing = {"model": 130}
    assert commands.run() == 130
    assert commands.seconds() == [10, 20] and commands.record("model")["finished"] is None
    assert commands.run() == 0
    assert commands.seconds() == [10, 30] and commands.finished() == [True, True]
    assert str(commands.record("model")["finished"]).endswith("+00:00")
    assert "thread" in commands.record("model")["machine"]
    assert commands.run() == 0 and commands.seconds() == [10, 30], "both stages were skipped"


def test_a_stage_that_has_changed_is_unfinished(commands: Commands) -> None:
    commands.run()
    changed = (PLANNED[0], Stage("model", ("train", "--steps", "6", "--out", "OUT/model"), ("good",)))
    commands.failing = {"model": InputError("was started with steps = 5; use the same value, or choose another folder")}
    with pytest.raises(InputError, match=f"or delete {re.escape(str(commands.folder / 'model'))} and rerun$"):
        commands.run(changed)
    assert commands.lines[0].startswith("changed since they were finished: model; if the command of one refuses")
    refused = "was started with n = 5; use the same value, another folder, or resume=False to rewrite it"
    commands.failing = {"model": InputError(refused)}
    with pytest.raises(InputError, match=f"value, or delete {re.escape(str(commands.folder / 'model'))} and rerun$"):
        commands.run(changed)
    commands.failing = {"model": 1}
    assert commands.run(changed) == 1
    assert commands.finished() == [True, False] and commands.seconds() == [10, 40]
    assert commands.run(changed) == 0
    assert commands.finished() == [True, True] and commands.seconds() == [10, 50]


def test_a_stage_waits_for_an_input_that_has_changed(commands: Commands) -> None:
    commands.run()
    changed = (Stage("good", ("train", "--steps", "6", "--out", "OUT/good")), PLANNED[1])
    assert commands.run(changed, ["model"]) == 0
    assert commands.executed == ["good"], "its files have turned out to be the same"


def test_finished_stages_of_an_earlier_recipe_are_remembered(commands: Commands) -> None:
    commands.run()
    assert commands.run(PLANNED[:1]) == 0
    assert commands.finished() == [True, True]
    assert commands.run() == 0 and commands.executed == [], "it was skipped"


def test_a_check_of_a_finished_stage_is_no_attempt(commands: Commands) -> None:
    planned = (Stage("good", PLANNED[0].argv, always=True), PLANNED[1])
    commands.run(planned)
    assert commands.run(planned) == 0
    assert commands.executed == ["good"] and commands.seconds() == [10, 10]
    assert not any(line.startswith("changed since") for line in commands.lines), "good is checked before model"


def test_records_travel_with_the_folders_of_stages(
    commands: Commands, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine has trained the model in a folder of its own, with the same GOOD."""
    commands.run()
    elsewhere = Commands(tmp_path / "elsewhere", monkeypatch)
    assert elsewhere.run(PLANNED[:1]) == 0
    shutil.copytree(commands.folder / "model", elsewhere.folder / "model")
    assert elsewhere.run() == 0 and elsewhere.executed == []
    assert elsewhere.finished() == [True, True]


GRID = (
    Stage("corpus", ("prepare", "--out", "OUT/corpus"), always=True),
    Stage("good", ("train", "--out", "OUT/good"), ("corpus",)),
    *(Stage(f"model-{name}", ("train", "--out", f"OUT/model-{name}"), ("good",)) for name in "abc"),
    Stage("evaluation", ("evaluate", "--out", "OUT/evaluation"), ("model-a", "model-b", "model-c"), always=True),
    Stage("comparison", ("compare", "--out", "OUT/comparison"), ("evaluation",), always=True),
)


def test_only_some_stages_and_what_they_need(commands: Commands) -> None:
    assert commands.run(GRID, ["model-[ab]"]) == 0
    assert commands.executed == ["corpus", "good", "model-a", "model-b"]
    assert [line.split()[0] for line in commands.lines if "12.500" in line] == ["model-a", "model-b"]
    assert commands.run(GRID, ["model-c", "model-a"]) == 0
    assert commands.executed == ["model-c"], "the corpus is finished, and was not asked for"
    assert "model-a: already complete, skipped" in commands.lines
    assert commands.run(GRID, ["comparison"]) == 0 and commands.executed == ["evaluation", "comparison"]
    assert commands.run(GRID) == 0 and commands.executed == ["corpus", "evaluation", "comparison"]


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(InputError, match="--only model: matches no stage; the stages are corpus, good, model-a, model"):
        matching(GRID, ["good", "model"])
    many = [Stage(f"model-{number}", ("train",)) for number in range(40)]
    with pytest.raises(InputError, match=r"model-9 and 30 more, which --list shows$"):
        matching(many, ["good"])


def test_a_stage_that_another_process_runs_is_left_to_it(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process holds the lock of model-a, finishes it while this one waits, and then runs nothing else."""
    other = FileLock(commands.folder / ".cdgen-locks" / "model-a")
    assert other.take()
    monkeypatch.setattr(
        "cdgen.cli.experiment.runner.holder", lambda path: "gpu2, process 7" if path == other.path else None
    )

    def sleep(seconds: float) -> None:
        commands.slept += seconds > 0
        if commands.slept == 3:
            stage, out = GRID[2], str(commands.folder)
            commands.write("model-a", [4])
            digest = stage_files.digest(commands.folder, stage.argv, stage.inputs, out)
            record = {"digest": digest, "seconds": 1.0, "finished": "then", "machine": "gpu", "out": out}
            stage_files.write_record(commands.folder / "model-a", record)
            other.release()

    monkeypatch.setattr("cdgen.cli.experiment.runner.time.sleep", sleep)
    assert commands.run(GRID) == 0
    assert commands.executed == ["corpus", "good", "model-b", "model-c", "evaluation", "comparison"]
    assert commands.slept == 3 and commands.record("model-a")["seconds"] == 1.0
    assert commands.lines.count("waiting for model-a (gpu2, process 7)") == 1, "it is reported once"
    assert "model-a: finished by another process" in commands.lines


def test_a_stage_whose_process_has_died_is_taken_over(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    other = FileLock(commands.folder / ".cdgen-locks" / "good")
    assert other.take()
    monkeypatch.setattr("cdgen.cli.experiment.runner.time.sleep", lambda seconds: other.release())
    assert commands.run(GRID) == 0
    assert commands.executed == [stage.name for stage in GRID]


def test_a_stage_that_is_finished_before_its_lock_is_taken(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    take = FileLock.take

    def finish_and_take(lock: FileLock) -> bool:
        if lock.path.name == "model":
            record = commands.record("good")
            record["digest"] = stage_files.digest(commands.folder, PLANNED[1].argv, ["good"], str(commands.folder))
            commands.write("model", [4])
            stage_files.write_record(commands.folder / "model", record)
        return take(lock)

    monkeypatch.setattr(FileLock, "take", finish_and_take)
    assert commands.run() == 0 and commands.executed == ["good"]


def test_many_finished_stages_are_one_line(commands: Commands) -> None:
    grid = [PLANNED[0], *(Stage(f"m{number}", ("train", "--out", f"OUT/m{number}"), ("good",)) for number in range(20))]
    commands.run(grid[:12])
    assert sum("finished in 10 s" in line for line in commands.lines) == 12
    assert "m9: finished in 10 s, 1 stage left" in commands.lines
    assert "m10: finished in 10 s" in commands.lines
    commands.run(grid)
    assert commands.lines[0] == "12 stages are already complete, skipped"


def test_long_commands_are_cut(commands: Commands) -> None:
    long = Stage("good", ("train", *["--note", "x" * 90] * 20, "--out", "OUT/good"))
    commands.run([long])
    assert len(commands.lines[0]) < 1100 and commands.lines[0].endswith("x ... (--dry-run prints it all)")


@pytest.mark.slow
def test_two_processes_share_the_stages_of_an_experiment(cdgen_command: Any, recipe: Path, tmp_path: Path) -> None:
    """The folder is moved when a part of the experiment is finished."""
    pytest.importorskip("accelerate")
    environment = {"CDGEN_CACHE": str(tmp_path / "cache")}
    first, second = tmp_path / "first", tmp_path / "moved"
    code, printed = cdgen_command("run", recipe, "--out", first, "--only", "model-ancestral", **environment)
    assert code == 0, printed
    weights = (first / "model-ancestral" / "step_000006" / "model.safetensors").read_bytes()
    (first / "model-ancestral" / "_stage.json").unlink()
    shutil.rmtree(first / "model-ancestral" / "step_000006")
    first.rename(second)
    commands = [cdgen_command, type(cdgen_command)(tmp_path)]
    for command in commands:
        command.start("run", recipe, "--out", second, **environment)
    outcomes = [command.wait() for command in commands]
    commands[1].close()
    assert [code for code, _ in outcomes] == [0, 0], outcomes
    begun = [line.split(":")[0] for _, printed in outcomes for line in printed.splitlines() if ": cdgen " in line]
    assert sorted(begun) == ["corpus", "corpus", "corpus-contrastive", "model-ancestral", "model-contrastive"]
    assert (second / "model-ancestral" / "step_000006" / "model.safetensors").read_bytes() == weights
    assert not list(second.rglob(".cdgen-*-*"))
