"""Ablations: methods that differ in one factor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdgen.engine.sampling_params import SamplingParams
from cdgen.evaluation.comparison.data import Comparison, Effect, MethodSummary, RunValue, TaskResult, TaskSummary
from cdgen.report.ablations import find_ablations
from cdgen.report.content import Ablation
from cdgen.report.names import Names
from cdgen.storage import manifest as manifests

GOOD = "sha256:aa"


def write(folder: Path, manifest: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / manifests.FILE_NAMES[manifest["kind"]]).write_text(json.dumps(manifest))
    return str(folder)


def corpus(folder: Path, method: str, bad: str = "", good: str = GOOD, **changes: Any) -> str:
    """Write the manifest of a generated corpus; a BAD with ":" is derived from GOOD, whose fingerprint is `good`."""
    params = SamplingParams.for_method(method, **changes)
    settings = {"ignore_eos": False, "split_documents": False, "format": "parquet"} | vars(params)
    fingerprint = f"{good}+{bad}" if ":" in bad else f"sha256:{bad}"
    models = {
        "good": {"name": "old/good@9", "fingerprint": good},
        "bad": {"name": bad, "fingerprint": fingerprint} if bad else None,
    }
    counts = {"shards": 0, "documents": 0, "tokens": 0, "new_tokens": 0, "errors": 0}
    about = {"settings": settings, "models": models, "seeds": {"fingerprint": "s"}, "environments": []}
    return write(folder, manifests.new("generated") | about | {"complete": True, "counts": counts, "shards": []})


def model(folder: Path, *synthetic: str, ratio: float = 0.3, **config: Any) -> str:
    """Write the manifest of a training run; return the name of a checkpoint."""
    values = {"corpus": "c", "synthetic": [*synthetic], "ratio": ratio if synthetic else 0.0}
    run = {"config": values | {"steps": 9, "seed": 1} | config, "inputs": {"corpus": ["x"], "synthetic": ["y"]}}
    return write(folder, manifests.new("run") | run | {"environments": [], "checkpoints": []}) + "@9"


def compared(models: Mapping[str, list[str]]) -> Comparison:
    effect = Effect(0.1, (0.0, 0.2), 0.01, 0.02, 0.1)
    task = TaskSummary("t", "f", "c", 5, "accuracy", True, True)
    methods = [
        MethodSummary(label, len(of), 0, effect if at else None) for at, (label, of) in enumerate(models.items())
    ]
    results = [
        TaskResult(
            label, "t", tuple(RunValue(name, seed, 9, 0.5) for seed, name in enumerate(of)), 0.5, (0.4, 0.6), None, None
        )
        for label, of in models.items()
    ]
    return Comparison("real", "best", 100, 0.95, 0, tuple(methods), (task,), tuple(results), ())


def found(models: Mapping[str, str | list[str]]) -> list[Ablation]:
    lists = {label: [one] if isinstance(one, str) else one for label, one in models.items()}
    return list(find_ablations(compared(lists), Names([], None)))


def levels(ablation: Ablation) -> list[tuple[str, str]]:
    return [(level.value, level.method) for level in ablation.levels]


def test_methods_and_the_strength_of_the_contrast(tmp_path: Path) -> None:
    early = "old/good@2"
    models = {"real": model(tmp_path / "m0")}
    for label, method, changes in (
        ("plain", "ancestral", {}),
        ("one", "contrastive", {}),
        ("half", "contrastive", {"contrast_strength": 0.5}),
        ("cut", "contrastive_top_k", {"top_k": 50}),
    ):
        written = corpus(tmp_path / label, method, early if "contrastive" in method else "", **changes)
        models[label] = model(tmp_path / f"m-{label}", written)
    by_method, other_method, strength = found(models)
    assert levels(by_method) == [
        ("ancestral", "plain"),
        ("contrastive", "one"),
        ("contrastive_top_k, top_k 50", "cut"),
    ]
    assert dict(by_method.equal) == {
        "mixing ratio": "0.3", "contrast strength": "1", "alpha": "0.1", "kind of BAD": "step 2 of GOOD's run"
    }  # fmt: skip
    assert levels(other_method) == [("ancestral", "plain"), ("contrastive", "half")]
    assert strength.factor == "contrast strength" and levels(strength) == [("0.5", "half"), ("1", "one")]
    assert strength.levels[0].effect is not None


def test_mixing_ratio_with_the_baseline_as_zero(tmp_path: Path) -> None:
    written = corpus(tmp_path / "corpus", "contrastive", "dropout:0.3")
    models = {"real": model(tmp_path / "m0")}
    assert found(models | {"few": model(tmp_path / "m1", written, ratio=0.1)}) == [], "0 and one ratio are no ablation"
    models |= {"many": model(tmp_path / "m9", written, ratio=0.9), "few": model(tmp_path / "m1", written, ratio=0.1)}
    [ablation] = found(models)
    assert ablation.factor == "mixing ratio" and levels(ablation) == [("0", "real"), ("0.1", "few"), ("0.9", "many")]
    assert ablation.levels[0].effect is None
    assert ("kind of BAD", "attention dropout 0.3") in ablation.equal


def test_kinds_of_bad_and_alpha(tmp_path: Path) -> None:
    models = {"real": model(tmp_path / "m0")}
    made = {"d": ("dropout:0.3", 0.1), "l": ("layers:2", 0.1), "s": ("x/bad@9", 0.1), "a": ("layers:2", 0.2)}
    for label, (bad, alpha) in made.items():
        models[label] = model(tmp_path / f"m-{label}", corpus(tmp_path / label, "contrastive", bad, alpha=alpha))
    alpha_found, kinds = found(models)
    assert alpha_found.factor == "alpha" and levels(alpha_found) == [("0.1", "l"), ("0.2", "a")]
    assert levels(kinds) == [("attention dropout 0.3", "d"), ("first 2 layers of GOOD", "l"), ("x/bad@9", "s")]


def test_anything_else_must_be_equal(tmp_path: Path) -> None:
    first = corpus(tmp_path / "c1", "contrastive", "dropout:0.3")
    second = corpus(tmp_path / "c2", "contrastive", "dropout:0.5")
    models = {"real": model(tmp_path / "m0"), "one": model(tmp_path / "m1", first)}
    assert [one.factor for one in found(models | {"two": model(tmp_path / "m2", second)})] == ["kind of BAD"]
    assert found(models | {"two": model(tmp_path / "m2", second, steps=8)}) == [], "trained for fewer steps"
    assert found(models | {"two": model(tmp_path / "m2", second, ratio=0.5)}) == [], "two factors differ"
    longer = corpus(tmp_path / "c3", "contrastive", "dropout:0.5", max_tokens=9)
    assert found(models | {"two": model(tmp_path / "m2", longer)}) == [], "continuations of another length"
    runs = [model(tmp_path / "m2", second), model(tmp_path / "m3", second, seed=2)]
    assert [one.factor for one in found(models | {"two": runs})] == ["kind of BAD"], "seeds may differ"
    runs = [model(tmp_path / "m2", second), model(tmp_path / "m3", first)]
    assert found(models | {"two": runs}) == [], "the runs of a method differ"
    assert found(models | {"two": "gone@9"}) == [], "its training run is not there"


def replications(folder: Path, label: str, method: str, bads: tuple[str, str], **changes: Any) -> list[str]:
    """Write two replications of a method, each with a GOOD of its own."""
    folders = [folder / f"{label}-seed{seed}" for seed in (1, 2)]
    made = [
        corpus(each, method, bad, f"sha256:{good}", **changes)
        for each, bad, good in zip(folders, bads, "ab", strict=True)
    ]
    return [model(folder / f"m-{label}-seed{seed}", name, seed=seed) for seed, name in enumerate(made, 1)]


def test_replications_may_have_their_own_good_and_bad(tmp_path: Path) -> None:
    own = ("x/bad-seed1@9", "x/bad-seed2@9")
    models: dict[str, str | list[str]] = {"real": model(tmp_path / "m0")}
    models["usual"] = replications(tmp_path, "usual", "contrastive", own)
    models["wide"] = replications(tmp_path, "wide", "contrastive", own, alpha=0.05)
    models["layers"] = replications(tmp_path, "layers", "contrastive", ("layers:2", "layers:2"))
    alpha_found, kinds = found(models)
    assert levels(alpha_found) == [("0.05", "wide"), ("0.1", "usual")]
    assert ("kind of BAD", "x/bad@9") in alpha_found.equal
    assert levels(kinds) == [("x/bad@9", "usual"), ("first 2 layers of GOOD", "layers")]
    swapped = models["wide"][::-1]
    assert [one.factor for one in found(models | {"wide": swapped})] == ["kind of BAD"], "other GOODs at the same seeds"


def test_repeated_real_text_is_a_method(tmp_path: Path) -> None:
    models = {"real": model(tmp_path / "m0")}
    models["plain"] = model(tmp_path / "m1", corpus(tmp_path / "c1", "ancestral"))
    run = json.loads((tmp_path / "m1" / manifests.FILE_NAMES["run"]).read_text())
    same = run["inputs"] | {"synthetic": run["inputs"]["corpus"]}
    config = run["config"] | {"synthetic": ["c"]}
    models["repeated"] = write(tmp_path / "m2", run | {"config": config, "inputs": same}) + "@9"
    [ablation] = found(models)
    assert levels(ablation) == [("ancestral", "plain"), ("real text, repeated", "repeated")]


def test_a_mixture_of_corpora_comes_after_the_numbers(tmp_path: Path) -> None:
    full, half = (
        corpus(tmp_path / name, "contrastive", "dropout:0.3", contrast_strength=strength)
        for name, strength in (("full", 1.0), ("half", 0.5))
    )
    models = {"both": model(tmp_path / "m3", full, half), "one": model(tmp_path / "m1", full)}
    [ablation] = found({"real": model(tmp_path / "m0"), **models, "half": model(tmp_path / "m2", half)})
    assert levels(ablation) == [("0.5", "half"), ("1", "one"), ("1.0 + 0.5", "both")]
