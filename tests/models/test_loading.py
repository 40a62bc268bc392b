"""Loading: names of models, and the files that are read, which are neither code nor outside the folder."""

import ast
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import cdgen
from cdgen.engine.model_sizes import shapes
from cdgen.errors import CorpusError, InputError
from cdgen.models.configs import load_config, stored_dtype
from cdgen.models.loading import load
from cdgen.training.config import TrainConfig
from cdgen.training.model import build
from tests.helpers.checkpoints import edit, refusal

# ------------------------------------------------------------------------------------------------ names and files


@pytest.mark.parametrize(
    "name", ["nosuch", "a/b/c", "./owner/name", "/nosuch", "own er/name", "owner/x.gguf", "", "a\0b", "\ud800/x"]
)
def test_a_name_that_cannot_be_of_the_hub_is_refused_without_network(name, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("the hub was asked"))
    for use in (load, load_config, stored_dtype):
        with pytest.raises(InputError, match="no such folder or file"):
            use(name)


@pytest.mark.parametrize("device", ["nosuch", -1, ["cpu"]])
def test_a_device_that_cannot_be_used_is_refused(folder, device) -> None:
    with pytest.raises(InputError, match=f"device = {re.escape(repr(str(device)))}: cannot be used here: ") as caught:
        load(folder, device=device)
    assert "\n" not in str(caught.value)


def test_a_failure_of_the_hub_is_one_line(monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be fetched from the Hugging Face hub: it is not in the cache, and HF_HUB_OFFLINE" in refusal("a/b")

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host\nmore lines")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert refusal("a/b") == "a/b: no such folder, and cannot be fetched from the Hugging Face hub: no route to host"


def test_a_model_in_the_cache_of_the_hub_is_found(folders, good, tmp_path, monkeypatch) -> None:
    store, commit = tmp_path / "models--owner--name", "0" * 40
    (store / "refs").mkdir(parents=True)
    (store / "refs" / "main").write_text(commit)
    shutil.copytree(folders["good"], store / "snapshots" / commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model, tokenizer = load("owner/name")
    assert model.name == "owner/name" and tokenizer is not None
    assert torch.equal(model.module.lm_head.weight, good.lm_head.weight)
    assert model.fingerprint == load(folders["good"])[0].fingerprint
    snapshot = store / "snapshots" / commit
    write_index(snapshot, {"lm_head.weight": "../x.safetensors"})
    with pytest.raises(InputError, match=r"index\.json: puts lm_head\.weight into '\.\./x\.safetensors'"):
        load("owner/name")
    (snapshot / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors on the hub, or it cannot be fetched"):
        load("owner/name")


def test_pickled_weights_are_not_read(folder) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    message = refusal(folder)
    assert "has no model.safetensors, only pytorch_model.bin; pickled weights are not read" in message
    assert "to convert a model that you trust: AutoModelForCausalLM.from_pretrained(MODEL).save_pretrained" in message
    edit(folder / "config.json", transformers_weights="pytorch_model.bin")
    assert "transformers_weights is not supported" in refusal(folder)


def test_folders_without_a_model_are_refused(tmp_path, folder) -> None:
    assert "holds neither config.json nor a .gguf file" in refusal(tmp_path)
    assert "use a folder with config.json and safetensors" in refusal(__file__)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../other"}))
    assert "holds an adapter; merge it into its base model" in refusal(folder)


def test_a_damaged_run_names_no_checkpoint_outside_its_folder(folder) -> None:
    run = {"kind": "run", "format_version": 2, "config": {}, "inputs": {}, "environments": []}
    (folder.parent / "step_000001").mkdir()
    for step in ("../model", 1.5, None, [1]):
        (folder.parent / "run.json").write_text(json.dumps(run | {"checkpoints": [{"step": step, "perplexity": None}]}))
        with pytest.raises(CorpusError, match=r"run\.json: .*damaged"):
            load(f"{folder.parent}@best")


# ------------------------------------------------------------------------------------------------ code


CODE = """
import pathlib
pathlib.Path({marker!r}).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class Config(LlamaConfig):
    model_type = "custom"
class Model(LlamaForCausalLM):
    config_class = Config
Tokenizer = PreTrainedTokenizerFast
"""


def test_code_in_a_folder_does_not_run(folder, tokenizer, monkeypatch) -> None:
    """transformers would ask on stdin whether it may, if it were not told."""
    marker = folder / "it_ran"
    (folder / "custom.py").write_text(CODE.format(marker=str(marker)))
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n" * 100))
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["custom.Tokenizer", "custom.Tokenizer"]})
    assert load(folder)[1] is not None
    maps = {"AutoConfig": "custom.Config", "AutoModelForCausalLM": "custom.Model"}
    edit(folder / "config.json", auto_map=maps)
    load(folder)  # transformers has code of its own for a Llama
    for kind in ("custom", "t5"):  # transformers has no causal language model for the config of a T5
        edit(folder / "config.json", model_type=kind)
        refusal(folder)
        with pytest.raises(InputError, match=str(folder)):
            shapes(str(folder), None)
        with pytest.raises(InputError, match=str(folder)):
            build(TrainConfig(corpus="c", tokenizer="t", out="o", model=str(folder), block_size=64), tokenizer)
    edit(folder / "config.json", model_type="custom")
    assert "needs Python code that comes with it, which runs only with trust_remote_code=True" in refusal(folder)
    assert not marker.exists()
    assert sys.stdin.tell() == 0, "an answer was read"


def test_every_call_that_might_run_code_says_whether_it_may() -> None:
    silent = []
    for path in Path(cdgen.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
            ):
                risky = node.func.value.id.startswith("Auto") and node.func.attr in ("from_pretrained", "from_config")
                if risky and "trust_remote_code" not in {keyword.arg for keyword in node.keywords}:
                    silent.append(f"{path.name}:{node.lineno}")
    assert not silent


@pytest.mark.parametrize("name", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_kernels_from_the_hub_are_refused(folder, name) -> None:
    edit(folder / "config.json", **{name: "somebody/kernel"})
    assert f"config.json: {name} = 'somebody/kernel': kernels from the hub are not used" in refusal(folder)
    edit(folder / "config.json", **{name: {"": "somebody/kernel"}})  # a value for each part of the model
    assert "kernels from the hub are not used" in refusal(folder)


# ------------------------------------------------------------------------------------------------ the index


def write_index(folder: Path, places: dict[str, Any]) -> None:
    """Split a folder's weights into two files with an index, and change the places of some tensors in it."""
    tensors = load_file(folder / "model.safetensors")
    half = dict.fromkeys(sorted(tensors)[: len(tensors) // 2])
    files = {name: "one.safetensors" if name in half else "two.safetensors" for name in tensors}
    for file in ("one.safetensors", "two.safetensors"):
        part = {name: tensor for name, tensor in tensors.items() if files[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    content = {"metadata": {}, "weight_map": files | places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_a_sharded_model_is_loaded(folder, bad) -> None:
    write_index(folder, {})
    model = load(folder)[0]
    assert torch.equal(model.module.lm_head.weight, bad.lm_head.weight)
    assert [path.name for path in model.files] == ["config.json", "one.safetensors", "two.safetensors"]


@pytest.mark.parametrize(
    "name", ["../other/two.safetensors", "{}/two.safetensors", "sub/two.safetensors", 5, None, "x.bin"]
)
def test_an_index_names_only_safetensors_of_its_folder(folder, tmp_path, name) -> None:
    write_index(folder, {})
    for other in (tmp_path / "other", folder / "sub"):  # a place that exists
        other.mkdir()
        shutil.copy(folder / "two.safetensors", other)
    name = name.format(tmp_path / "other") if isinstance(name, str) else name
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    edit(index, weight_map={key: name if place == "two.safetensors" else place for key, place in places.items()})
    message = refusal(folder)
    assert f"{index}: puts " in message and f"into {name!r}" in message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "is not a JSON object"),
        ({"metadata": {}}, "has no weight_map"),
        ({"metadata": {}, "weight_map": ["a.safetensors"]}, "has no weight_map"),
        ({"weight_map": {"lm_head.weight": "one.safetensors"}}, "has no metadata"),
        ({"metadata": {}, "weight_map": {"lm_head.weight": "x.safetensors"}}, "names x.safetensors, which is not in"),
    ],
)
def test_a_damaged_index_is_named(folder, content, reason) -> None:
    write_index(folder, {})
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    assert f"index.json: {reason}" in refusal(folder)


def test_an_index_that_is_a_pipe_is_named(folder) -> None:
    write_index(folder, {})
    (folder / "model.safetensors.index.json").unlink()
    os.mkfifo(folder / "model.safetensors.index.json")
    message = refusal(folder)
    assert "index.json: cannot be read: " in message and "is not a regular file" in message
