"""Evaluating models on tasks: the results folder, resuming, and errors."""

import io
import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.evaluation import evaluate as evaluate_module
from cdgen.evaluation import results
from cdgen.evaluation.evaluate import evaluate
from cdgen.evaluation.forms.minimal_pairs import MinimalPairs
from cdgen.evaluation.models import Model, parse_models
from cdgen.evaluation.tasks import Task, parse_task
from cdgen.storage import manifest as manifests
from cdgen.storage.folder import OutputFolder
from tests.helpers.tiny_models import SENTENCES

NO_RUN = {"config": {}, "inputs": {}, "environments": [], "checkpoints": []}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Write a file of minimal pairs: sentences, and the same words in another order."""
    path = tmp_path / "pairs.jsonl"
    records = [
        {"sentence_good": text, "sentence_bad": " ".join(sorted(text.split())), "UID": f"order{len(text) % 2}"}
        for text in SENTENCES
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def task(pairs: Path) -> Task:
    return parse_task(f"minimal_pairs={pairs}")


def write_run(folder: Path, steps: list[int], seed: int = 42) -> Path:
    """Write a run.json that lists these checkpoints, and their empty folders."""
    folder.mkdir()
    checkpoints = [{"step": step, "loss": 1.0, "perplexity": 9.0 - step, "files": {}} for step in steps]
    fields = NO_RUN | {"config": {"seed": seed}, "checkpoints": checkpoints}
    (folder / "run.json").write_bytes(manifests.encode(manifests.new(manifests.RUN) | fields))
    for step in steps:
        (folder / f"step_{step:06d}").mkdir()
    return folder


def test_models_of_a_training_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mixed", [1, 2, 3], seed=7)
    assert parse_models([f"{run}@best"]) == [Model("mixed", f"{run}@3", 7, 3)]
    assert parse_models([f"x={run}@2"]) == [Model("x", f"{run}@2", 7, 2)]
    assert [model.step for model in parse_models([f"{run}@all"])] == [1, 2, 3]
    with pytest.raises(InputError, match="no such checkpoint"):
        parse_models([f"{run}@4"])


def test_labels_of_other_models() -> None:
    assert parse_models(["path/to/good", "owner/name", "a.gguf", "b=path/to/good"]) == [
        Model("good", "path/to/good"),
        Model("name", "owner/name"),
        Model("a", "a.gguf"),
        Model("b", "path/to/good"),
    ]
    with pytest.raises(InputError, match="b/good and a/good have the same label, good; write LABEL=b/good"):
        parse_models(["a/good", "b/good"])
    with pytest.raises(InputError, match="b/good and a/good have the same label"):
        parse_models(["a/good", Model("good", "b/good")])
    assert parse_models(["some/[x] y"])[0].label == "x-y"


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("..=m", "..=m: no such folder or file, nor LABEL=MODEL: a label has at most 100 letters"),
        ("a b=m", "a b=m: no such folder or file, nor LABEL=MODEL"),
        ("some/---", "some/---: the name of this folder cannot be the model's label; write LABEL=some/---"),
        ("some/" + "x" * 101, "cannot be the model's label"),
    ],
)
def test_labels_that_are_no_file_names(stated: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_models([stated])
    assert message in str(error.value)


def test_a_path_with_an_equals_sign(tmp_path: Path) -> None:
    run = write_run(tmp_path / "k=1", [3])
    (tmp_path / "m=2").mkdir()
    assert parse_models([f"{run}@3", f"{tmp_path}/m=2", f"x={tmp_path}/m=2"]) == [
        Model("k-1", f"{run}@3", 42, 3),
        Model("m-2", f"{tmp_path}/m=2"),
        Model("x", f"{tmp_path}/m=2"),
    ]


def test_two_models_whose_tables_would_have_one_name(tmp_path: Path) -> None:
    run = write_run(tmp_path / "mixed", [3])
    with pytest.raises(InputError, match="have the same label"):
        parse_models([f"{run}@3", "mixed-seed42-step3=other"])


def test_a_name_that_is_too_long_is_refused_before_anything_is_scored(pairs: Path, tmp_path: Path) -> None:
    task = Task("t" * 100, "minimal_pairs", str(pairs))
    with pytest.raises(InputError, match="is too long for the name of a file; use a shorter label or name of the task"):
        evaluate([Model("m" * 100, "unread", 42, 1000)], [task], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_results_folder(folders: dict[str, Path], task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    evaluation = evaluate([str(folders["good"]), f"small={folders['bad']}"], [task], out)
    found = list(evaluation.entries)
    assert [(each.label, each.task["name"], each.task["items"]) for each in found] == [
        ("good", "minimal_pairs", len(SENTENCES)),
        ("small", "minimal_pairs", len(SENTENCES)),
    ]
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*")) == [
        "results.json",
        "scores/good/minimal_pairs.parquet",
        "scores/small/minimal_pairs.parquet",
    ]
    table = found[0].table()
    assert list(table["id"]) == [f"pairs:{at}" for at in range(1, len(SENTENCES) + 1)]
    value = found[0].values[MinimalPairs.metrics[1].name]
    assert value == pytest.approx(np.mean(table[MinimalPairs.metrics[1].columns["value"]]))
    assert results.read(out) == found
    assert evaluation.values["small"] == {"minimal_pairs": next(iter(found[1].values.values()))}
    assert repr(evaluation).startswith(f"Evaluation(folder={out!r}, values={{'good': {{'minimal_pairs': ")
    assert str(evaluation).splitlines()[0].split() == list(results.HEADER)


def test_a_rerun_computes_only_what_is_missing(
    folders: dict[str, Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scored = tmp_path / "out", []
    score = MinimalPairs.score

    def counted(self: MinimalPairs, *args: Any) -> Any:
        scored.append(len(args[0]))
        if len(scored) == 2:
            raise KeyboardInterrupt
        return score(self, *args)

    monkeypatch.setattr(MinimalPairs, "score", counted)
    models = parse_models([str(folders["good"]), str(folders["bad"])])
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, [task], out)
    assert [each.label for each in results.read(out)] == ["good"]
    evaluate(models, [task], out)
    assert len(scored) == 3
    (out / "scores/good/minimal_pairs.parquet").unlink()
    evaluate(models, [task], out)
    assert len(scored) == 4
    (out / "scores/good/minimal_pairs.parquet").write_bytes(b"altered")
    with pytest.raises(CorpusError, match="is missing, truncated or altered"):
        results.read(out)[0].table()


def test_other_scores_of_the_same_name_are_kept(folders: dict[str, Path], task: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    model = Model("m", str(folders["good"]))
    evaluate([model], [task], out)
    before = (out / "results.json").read_bytes()
    for other, change, message in (
        (model._replace(source=str(folders["bad"])), {}, "the weights of .* changed since it was written"),
        (model, {"limit": 1}, f"the number of items of the task minimal_pairs changed.* .{len(SENTENCES)}, now 1."),
        (model, {"fields": {"id": "x{{number}}"}}, "the items of the task minimal_pairs changed"),
    ):
        with pytest.raises(InputError, match=f"{message}.*evaluate into another folder"):
            evaluate([other], [Task(**{"name": task.name, "form": task.form, "path": task.path} | change)], out)
    with pytest.raises(InputError, match=r"the convention .* \(lm-eval, now babylm\)"):
        evaluate([model], [task], out, convention="babylm")
    with pytest.raises(InputError, match=r"the dtype .* \(float32, now bfloat16\); evaluate into another folder"):
        evaluate([model], [task], out, dtype="bfloat16")
    assert (out / "results.json").read_bytes() == before


def test_foreign_files_and_folders(folders: dict[str, Path], task: Task, tmp_path: Path) -> None:
    model = Model("m", str(folders["good"]))
    foreign = tmp_path / "out/scores/m/minimal_pairs.parquet"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("mine")
    first = Model("first", str(folders["good"]))
    with pytest.raises(CorpusError, match="is in the way, and no manifest lists it; move it"):
        evaluate([first, model], [task], tmp_path / "out")
    assert foreign.read_text() == "mine"
    for name in ("scores", "scores/m"):
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out" / name).parent.mkdir(parents=True)
        (tmp_path / "out" / name).write_text("mine")
        with pytest.raises(CorpusError, match=f"{name}: is in the way; move it"):
            evaluate([first, model], [task], tmp_path / "out")
    assert not (tmp_path / "out/results.json").exists()  # nothing has been scored
    run = write_run(tmp_path / "run", [1])
    with pytest.raises(CorpusError, match="describes a training run, not results of an evaluation"):
        evaluate([model], [task], run)


def test_a_model_without_a_tokenizer(folders: dict[str, Path], task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="bare: has no tokenizer; put its files beside the weights"):
        evaluate([Model("m", str(folders["bare"]))], [task], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_model_is_reported_before_others_are_scored(
    folders: dict[str, Path], task: Task, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="none: no such folder or file"):
        evaluate(parse_models([str(folders["good"]), "none"]), [task], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_task(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InputError, match=r"task minimal_pairs: has no items: .*empty.jsonl is empty"):
        evaluate([Model("m", "unread")], [parse_task(f"minimal_pairs={tmp_path / 'empty.jsonl'}")], tmp_path / "out")


def test_a_score_that_is_nan(
    good: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, task: Task, tmp_path: Path
) -> None:
    """Weights that are finite may still overflow."""
    broken = LlamaForCausalLM(good.config)
    broken.load_state_dict(good.state_dict())
    with torch.no_grad():
        broken.lm_head.weight[3:4] = 3e38
        broken.model.norm.weight.fill_(3e38)
    broken.save_pretrained(tmp_path / "broken")
    tokenizer.save_pretrained(tmp_path / "broken")
    with pytest.raises(InputError, match=r"broken.*NaN"):
        evaluate([Model("m", str(tmp_path / "broken"))], [task], tmp_path / "out")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"kind": "x"}, "describes x, not results of an evaluation"),
        ({"results": {}}, "field 'results' is not a list"),
        ({"format_version": 9}, "has format version 9"),
        ({"results": [{}]}, "has no field 'results"),
    ],
)
def test_damaged_results(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    content = manifests.new(manifests.RESULTS) | {"environments": [], "results": []} | damage
    with OutputFolder(tmp_path / "out") as folder:
        folder.write("results.json", json.dumps(content).encode())
    with pytest.raises(CorpusError, match=message):
        results.read(tmp_path / "out")
    with pytest.raises(InputError, match="holds no results of an evaluation"):
        results.read(tmp_path)


def test_a_metric_that_is_not_defined(
    folders: dict[str, Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdgen.evaluation.evaluate.estimate", lambda metric, table: float("nan"))
    with pytest.raises(InputError, match=r"good, task minimal_pairs: macro_accuracy is nan: it is not defined"):
        evaluate([Model("m", str(folders["good"]))], [task], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nobody_reads_the_table(
    folders: dict[str, Path], pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Closed())
    argv = ["evaluate", str(folders["good"]), "--tasks", f"minimal_pairs={pairs}", "--out", str(tmp_path / "out")]
    assert main(argv) == 0
    assert len(results.read(tmp_path / "out")) == 1


def test_two_tasks_of_one_name(task: Task, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="tasks: two have the name minimal_pairs"):
        evaluate([Model("m", "unread")], [task, task], tmp_path / "out")


@pytest.mark.parametrize(
    ("models", "tasks", "message"),
    [
        (None, "wug", "models = None: give a string or a list"),
        ([], "wug", "models: there are none"),
        (["good", 5], "wug", "models: 5 is of type int; give strings"),
        ("good", 5, "tasks = 5: give a string or a list"),
        ([parse_task("entity_tracking")], "wug", r"models: Task\(.* is of type Task; give strings"),
        (parse_task("entity_tracking"), "wug", r"models: Task\(.* is of type Task; give strings"),
        ("good", Model("good", "good"), r"tasks: Model\(.* is of type Model; give strings"),
        ("good", {"wug": 1}, "tasks = {.*: give a string or a list"),
    ],
)
def test_what_is_neither_a_string_nor_a_list(models: Any, tasks: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        evaluate(models, tasks, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_model_or_task_needs_no_list(folders: dict[str, Path], task: Task, tmp_path: Path) -> None:
    name = str(folders["good"])
    several = evaluate([name], [f"{task.form}={task.path}"], tmp_path / "several")
    for models in (folders["good"], [folders["good"]], Model("good", name)):
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        assert evaluate(models, task, out).values == several.values


@pytest.mark.parametrize("renamed", [1, 2])
def test_a_kill_while_scores_are_written(
    renamed: int, folders: dict[str, Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever files have their names already, a rerun resumes."""
    model, out = Model("m", str(folders["good"])), tmp_path / "out"
    rename, done = os.replace, []

    def killed(source: str, target: str) -> None:
        rename(source, target)
        done.append(target)
        if len(done) == renamed:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", killed)
        evaluate([model], [task], out)
    assert evaluate([model], [task], out).entries[0].table()


def test_a_model_is_freed_before_the_next_one_is_loaded(
    folders: dict[str, Path], task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, seen = evaluate_module.load, []

    def loading(*args: Any, **options: Any) -> Any:
        assert [one for one in seen if one() is not None] == []
        loaded, tokenizer = load(*args, **options)
        seen.append(weakref.ref(loaded.module))
        return loaded, tokenizer

    monkeypatch.setattr(evaluate_module, "load", loading)
    evaluate([Model("a", str(folders["good"])), Model("b", str(folders["bad"]))], [task], tmp_path / "out")
    assert len(seen) == 2
