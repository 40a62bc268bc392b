"""Names in manifests: folders that were moved, and models by their fingerprints."""

import json
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from cdgen.errors import InputError
from cdgen.report.local_models import local_source, model_files
from cdgen.report.names import Names
from cdgen.report.parts import Part, find_part
from cdgen.report.roles import find_uses
from cdgen.storage import manifest as manifests


def test_names_that_no_longer_exist_are_looked_for_beside_the_parts(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "seeds.parquet").touch()
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "run.json").write_text(
        json.dumps(manifests.new("run") | {"config": {}, "inputs": {}, "environments": [], "checkpoints": []})
    )
    part = find_part(tmp_path / "good", "my run")
    assert part is not None
    names = Names([part], None)
    assert names.path("/gone/corpus/seeds.parquet") == tmp_path / "corpus" / "seeds.parquet"
    assert names.part("/gone/good") is part and names.short("/gone/good") == "my run"
    assert names.short("/gone/other") == "/gone/other"
    assert names.path(str(tmp_path / "corpus")) == tmp_path / "corpus"
    model = names.model({"name": "/gone/good@20", "fingerprint": "sha256:0"})
    assert (model.name, model.source, model.step) == ("my run@20", f"{tmp_path}/good@20", 20)


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000, "~nobody/x", "../..", "."])
def test_names_that_no_file_can_have(name: str) -> None:
    names = Names([], None)
    assert names.part(name) is None and names.short(name) == name
    assert names.model({"name": name, "fingerprint": "sha256:0"}).run is None


def test_a_model_is_known_by_its_fingerprint_under_any_name(experiment: Path, folders: dict[str, Path]) -> None:
    runs = [part for name in ("good", "model-ancestral") if (part := find_part(experiment / name, name))]
    corpus = find_part(experiment / "corpus-contrastive", "c")
    assert corpus is not None
    names, entry = Names(runs, None), corpus.manifest["models"]["good"] | {"name": "elsewhere/x@best"}
    assert (names.model(entry).name, names.model(entry).run) == ("good@6", runs[0])
    good = names.model(entry)
    derived_bads = {"dropout:0.30": "good@6 with attention dropout 0.3", "layers:2": "the first 2 layers of good@6"}
    for rule, shown in derived_bads.items():
        derived = names.model({"name": rule, "fingerprint": f"{good.fingerprint}+{rule}"}, good)
        assert (derived.name, derived.source, derived.rule) == (shown, rule, rule)
    other = names.model({"name": str(folders["good"]), "fingerprint": "sha256:1"})
    assert (other.name, other.source, other.run) == (str(folders["good"]), str(folders["good"]), None)


def test_the_size_of_a_model(folders: dict[str, Path], good: LlamaForCausalLM) -> None:
    found = model_files(str(folders["good"]))
    parameters = sum(one.numel() for one in good.parameters())
    assert found.parameters == parameters and found.bytes == (folders["good"] / "model.safetensors").stat().st_size


@pytest.mark.parametrize("name", ["/absent/model", "owner/name", "not a name", "run@best"])
def test_models_that_are_not_on_this_machine(name: str) -> None:
    with pytest.raises(InputError, match=r"is not on this machine|is not a training run"):
        local_source(name)


def test_a_model_of_the_hub_is_loaded_from_the_cache(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its name, a newer version could be fetched."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, local_files_only: str(folders["good"]))
    assert local_source("owner/name") == str(folders["good"])
    assert model_files("owner/name") == model_files(str(folders["good"]))


def test_bads_that_are_made_from_different_goods_are_different_models() -> None:
    counts = {"shards": 0, "documents": 0, "tokens": 0, "new_tokens": 0, "errors": 0}
    parts = []
    for name in ("one", "two"):
        good = {"name": f"m/{name}", "fingerprint": f"sha256:{name}"}
        bad = {"name": "dropout:0.3", "fingerprint": f"sha256:{name}+dropout:0.3"}
        manifest = {"models": {"good": good, "bad": bad}, "complete": True, "counts": counts}
        parts.append(Part(manifests.GENERATED, f"corpus-{name}", Path(name), manifest))
    found = [(use.kind, use.model.name, use.text) for use in find_uses(parts, Names([], None))]
    assert [each for each in found if each[0] == "BAD"] == [
        ("BAD", f"m/{name} with attention dropout 0.3", f"BAD of corpus-{name}") for name in ("one", "two")
    ]
