"""The table of `cdgen run --list`: the states of stages, and estimates from those that are finished."""

import json
from pathlib import Path

import pytest

from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.experiment.schedule import Schedule
from cdgen.cli.experiment.stage import Stage
from cdgen.cli.experiment.stage_list import stage_list
from cdgen.storage import manifest as manifests
from cdgen.storage import stages as stage_files
from cdgen.storage.locks import FileLock

CORPORA = ("--corpus", "c", "--tokenizer", "t")
SIZE = ("--block-size", "32", "--batch-size", "8", "--steps")
NAMES = ("model-a", "model-b", "model-c", "model-d", "model-e")


@pytest.fixture
def planned(tmp_path: Path) -> list[Stage]:
    def model(name: str, steps: int, kind: str = "tiny") -> Stage:
        options = ("--model", kind, *SIZE, str(steps), "--out", str(tmp_path / name))
        return Stage(name, ("train", *CORPORA, *options), ("corpus",))

    def corpus(name: str, *more: str) -> Stage:
        argv = ("generate", "--good", "g", "--seeds", "s", *more, "--max-tokens", "9", "--out", str(tmp_path / name))
        return Stage(name, argv)

    def evaluation(name: str, models: int) -> Stage:
        named = (f"m{number}=m{number}" for number in range(models))
        return Stage(name, ("evaluate", *named, "--tasks", "entity_tracking", "--out", str(tmp_path / name)))

    return [
        Stage("corpus", ("prepare", "text.txt", "--out", str(tmp_path / "corpus")), always=True),
        *(model(name, 100) for name in NAMES[:3]),
        model("model-d", 200),
        model("model-e", 100, "paper"),
        corpus("corpus-ancestral", "--method", "ancestral"),
        corpus("corpus-head", "--method", "head"),
        corpus("corpus-contrastive", "--method", "contrastive", "--bad", "b"),
        evaluation("evaluation-1", 2),
        evaluation("evaluation-2", 4),
    ]


def write_run(folder: Path, step: int, steps: int) -> None:
    (folder / f"step_{step:06d}").mkdir(parents=True)
    checkpoint = {"step": step, "loss": 2.5, "perplexity": 12.5, "files": {}}
    run = {"config": {"steps": steps}, "inputs": {}, "environments": [], "checkpoints": [checkpoint]}
    (folder / "run.json").write_text(json.dumps(manifests.new("run") | run))


def finish(planned: list[Stage], name: str, seconds: float, folder: Path) -> None:
    """Write the folder of a finished stage; each looks like a training run."""
    write_run(folder / name, 100, 100)
    stage = next(stage for stage in planned if stage.name == name)
    record = {"seconds": seconds, "finished": "then", "machine": "H100", "out": "o"}
    record["digest"] = Schedule(planned, folder, ()).digest(stage)
    stage_files.write_record(folder / name, record)


def listed(planned: list[Stage], folder: Path) -> tuple[dict[str, list[str]], str]:
    """Return the cells of the table by the name of the stage, and the last line."""
    lines = list(stage_list(planned, [stage.name for stage in planned], folder, build_parser().parse_args))
    starts = [lines[0].index(word) for word in ("stage", "state", "time", "left", "machine")]
    ends = [*starts[1:], 10**6]
    rows = [[line[start:end].strip() for start, end in zip(starts, ends, strict=True)] for line in lines[1:-2]]
    return {row[0]: row[1:] for row in rows}, lines[-1]


def test_states_and_estimates(planned: list[Stage], tmp_path: Path) -> None:
    finish(planned, "corpus", 2, tmp_path)
    finish(planned, "model-a", 100, tmp_path)
    finish(planned, "corpus-ancestral", 30, tmp_path)
    finish(planned, "evaluation-1", 60, tmp_path)
    write_run(tmp_path / "model-b", 25, 100)
    write_run(tmp_path / "model-c", 50, 100)
    lock = FileLock(tmp_path / ".cdgen-locks" / "model-c")
    assert lock.take()
    (tmp_path / "corpus-contrastive").mkdir()
    rows, totals = listed(planned, tmp_path)
    lock.release()
    assert rows == {
        "corpus": ["finished", "2.0 s", "", "H100"],
        "model-a": ["finished", "1 min 40 s", "", "H100"],
        "model-b": ["partly done, step 25 of 100", "", "about 1 min 15 s", ""],
        "model-c": ["running, step 50 of 100", "", "about 50 s", ""],
        "model-d": ["waiting", "", "about 3 min 20 s", ""],
        "model-e": ["waiting", "", "unknown", ""],
        "corpus-ancestral": ["finished", "30 s", "", "H100"],
        "corpus-head": ["waiting", "", "about 30 s", ""],
        "corpus-contrastive": ["partly done", "", "unknown", ""],
        "evaluation-1": ["finished", "1 min", "", "H100"],
        "evaluation-2": ["waiting", "", "about 2 min", ""],
    }
    left = "About 7 min 55 s of work is left, without 2 stages of unknown length."
    assert totals == f"4 of 11 stages finished, which took 3 min 12 s. {left}"


def test_the_median_of_several_stages(planned: list[Stage], tmp_path: Path) -> None:
    finish(planned, "corpus", 2, tmp_path)
    for name, seconds in zip(NAMES, (100, 10, 20), strict=False):
        finish(planned, name, seconds, tmp_path)
    assert listed(planned, tmp_path)[0]["model-d"] == ["waiting", "", "about 40 s", ""]


def test_a_stage_whose_input_has_changed(planned: list[Stage], tmp_path: Path) -> None:
    finish(planned, "corpus", 2, tmp_path)
    finish(planned, "model-a", 100, tmp_path)
    (tmp_path / "corpus" / "step_000100").rename(tmp_path / "corpus" / "step_000200")
    run = json.loads((tmp_path / "corpus" / "run.json").read_text().replace("100", "200"))
    (tmp_path / "corpus" / "run.json").write_text(json.dumps(run))
    rows, _ = listed(planned, tmp_path)
    assert rows["corpus"][0] == "finished" and rows["model-a"][:2] == ["changed", "1 min 40 s"]


def test_nothing_has_run_yet(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["run", str(recipe), "--out", str(tmp_path / "out"), "--list"]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split()[0] for line in lines[1:-2]]
    assert names[:3] == ["corpus", "tokenizer", "good"] and all(line.split()[1] == "waiting" for line in lines[1:-2])
    reason = "The time left is unknown, because no stage of the same kind is finished."
    assert lines[-1] == f"0 of {len(names)} stages finished. {reason}"
    assert not (tmp_path / "out").exists()
    assert main([*argv, "--only", "go*"]) == 0
    assert "0 of 1 stage finished." in capsys.readouterr().out
    assert main([*argv, "--only", "gold"]) == 2
    assert "--only gold: matches no stage; the stages are corpus, tokenizer, good" in capsys.readouterr().err
