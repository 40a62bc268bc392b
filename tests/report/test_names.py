"""Names in manifests: folders that were moved, and models by their fingerprints."""

import json
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from cdgen.errors import InputError
from cdgen.report.local_models import check_local, model_files
from cdgen.report.names import Names
from cdgen.report.parts import find_part
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
        check_local(name)
