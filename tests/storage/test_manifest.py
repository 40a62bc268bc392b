"""Manifests: a declaration of their fields, and names that are not UTF-8."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from cdgen.errors import CorpusError, InputError
from cdgen.storage import checked_json, manifest_fields, stages
from cdgen.storage import manifest as manifests

DECLARED = {
    "name": str,
    "rows": int,
    "loss": float,
    "whole": bool,
    "about?": (dict, None),
    "shards": [{"number": int}],
    "files": {re.compile(r"\w+\.txt"): {"sha256": (str, None)}},
}
FITS: dict[str, Any] = {
    "name": "", "rows": 0, "loss": 1, "whole": False, "shards": [{"number": 3, "more": None}],
    "files": {"a.txt": {"sha256": None}}, "unknown": [1],
}  # fmt: skip


def test_a_value_that_fits() -> None:
    for more in ({}, {"about": None}, {"about": {}}, {"loss": 1.5}, {"shards": []}, {"files": {}}):
        assert checked_json.fault(FITS | more, DECLARED) is None


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"name": 5}, "field 'name' is not text"),
        ({"name": None}, "field 'name' is not text"),
        ({"rows": True}, "field 'rows' is not a whole number of 0 or more"),
        ({"rows": -1}, "field 'rows' is not a whole number of 0 or more"),
        ({"rows": 1.0}, "field 'rows' is not a whole number of 0 or more"),
        ({"rows": 2**63}, "field 'rows' is not a whole number of 0 or more"),
        ({"loss": "1"}, "field 'loss' is not a number"),
        ({"loss": 10**400}, "field 'loss' is not a number"),
        ({"loss": False}, "field 'loss' is not a number"),
        ({"whole": 0}, "field 'whole' is not true or false"),
        ({"about": []}, "field 'about' is not an object"),
        ({"shards": {}}, "field 'shards' is not a list"),
        ({"shards": [{"number": 1}, {}]}, "has no field 'shards[1].number'"),
        ({"shards": [{"number": None}]}, "field 'shards[0].number' is not a whole number of 0 or more"),
        ({"files": {"../a.txt": {"sha256": ""}}}, "field 'files.../a.txt' is not of the form \\w+\\.txt"),
        ({"files": {"a.txt": {"sha256": 1}}}, "field 'files.a.txt.sha256' is not text"),
    ],
)
def test_a_fault_names_the_field(fields: dict[str, Any], fault: str) -> None:
    assert checked_json.fault(FITS | fields, DECLARED) == fault
    assert checked_json.fault([], DECLARED) == "is not an object"


def test_a_file_that_is_not_json(tmp_path: Path) -> None:
    assert checked_json.read(tmp_path / "none", "rerun") is None
    for content in (b"", b"\0" * 100, b"\xff", b"[" * 10**5, b"1" * 5000):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(CorpusError, match=r"a: cannot be read: .*; rerun$"):
            checked_json.read(tmp_path / "a", "rerun")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(CorpusError, match=r"cannot be read: is not a regular file; rerun$"):
            checked_json.read(path, "rerun")


def test_paths_that_are_not_utf8_survive() -> None:
    manifest = manifests.new(manifests.GENERATED) | {"paths": ["caf\udce9.txt", "þorn\\"]}
    assert json.loads(manifests.encode(manifest)) == manifest
    assert "þorn" in manifests.encode(manifest).decode()


def test_files_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    for name in ("dangling", "folder"):
        with pytest.raises(CorpusError, match=f"{name}: is in the way, and no manifest lists it; move it, or choose"):
            manifests.check_free(tmp_path, ["free", name])
        manifests.check_free(tmp_path, ["free", name], listed=[name])
    with pytest.raises(InputError, match="folder: is read, but would also be replaced"):
        manifests.check_not_replaced(tmp_path, [tmp_path / "other", tmp_path / "x" / ".." / "folder"], ["folder"])


def test_an_experiment_is_no_folder_for_other_output(tmp_path: Path) -> None:
    stages.write(tmp_path, "tiny", str(tmp_path), [])
    manifests.check_no_other_kind(tmp_path, manifests.EXPERIMENT)
    with pytest.raises(CorpusError, match=r"stages\.json: describes an experiment, not a prepared corpus; choose"):
        manifests.check_no_other_kind(tmp_path, manifests.PREPARED)


def test_an_output_is_whole_while_the_files_that_its_manifest_lists_are_there(tmp_path: Path) -> None:
    totals = {"documents": 0, "words": 0, "bytes": 0}
    counts = {"train": totals, "test": totals, "seeds": totals, "duplicates": 0, "over_budget": 0, "empty": 0}
    settings = {"test": 0.1, "seeds": 0.1, "seed": 42}
    prepared = {"settings": settings, "sources": [], "fingerprint": "", "counts": counts}
    tokenizer = {"corpus_sha256": "", "fingerprint": "", "entries": 1, "files": {"tokenizer.json": ""}}
    shard = dict.fromkeys(("number", "rows", "tokens", "new_tokens", "errors", "environment"), 0)
    shard |= {"name": "data/train-00000.parquet", "sha256": ""}
    shard |= {"documents": {"name": "_documents/00000.parquet", "rows": 0, "sha256": ""}}
    generating = {"ignore_eos": True, "split_documents": True, "format": "parquet"}
    generated = {"settings": generating, "models": {"good": {"name": "", "fingerprint": ""}, "bad": None}}
    generated |= {"seeds": {"fingerprint": ""}, "environments": [{}], "complete": True, "shards": [shard]}
    generated["counts"] = dict.fromkeys(("shards", "documents", "tokens", "new_tokens", "errors"), 1)
    found = [{"step": step, "loss": 1.0, "perplexity": None, "files": {}} for step in (3, 6)]
    run = {"config": {}, "inputs": {}, "environments": [], "checkpoints": found}
    cases = [
        ("prepared", prepared | {"files": {"seeds.parquet": {"sha256": ""}}}, ["seeds.parquet"]),
        ("tokenizer", tokenizer, ["tokenizer.json"]),
        ("generated", generated, ["data/train-00000.parquet", "_documents/00000.parquet"]),
        ("run", run, ["step_000006"]),
    ]
    for kind, fields, names in cases:
        folder = tmp_path / kind
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        assert not manifests.is_whole(folder), "it has no manifest"
        (folder / manifests.FILE_NAMES[kind]).write_bytes(manifests.encode(manifests.new(kind) | fields))
        assert manifests.is_whole(folder), kind
        for name in names:
            (folder / name).unlink()
            assert not manifests.is_whole(folder), name
            (folder / name).touch()
    assert not manifests.is_whole(tmp_path / "nowhere")
    later = generated | {"environments": [{}, {"torch": "3"}], "shards": [shard | {"environment": 1}]}
    states = [manifests.new("generated") | each for each in (generated, later)]
    assert manifests.content(states[0]) == manifests.content(states[1]), "other versions wrote the same file"
    unfinished = manifests.new("generated") | generated | {"complete": False}
    (tmp_path / "generated" / "_manifest.json").write_bytes(manifests.encode(unfinished))
    assert not manifests.is_whole(tmp_path / "generated")


@pytest.mark.parametrize(
    ("declared", "value", "field"),
    [
        (manifest_fields.GENERATED["seeds"], {"fingerprint": "a", "paths": [1]}, "paths[0]"),
        (manifest_fields.GENERATED["seeds"], {"fingerprint": "a", "prefix_tokens": "5"}, "prefix_tokens"),
        (manifest_fields.GENERATED["models"]["good"], {"name": "g", "fingerprint": "a+dropout:x"}, "fingerprint"),
        (manifest_fields.GENERATED["models"]["good"], {"name": "g", "fingerprint": "a+layers:"}, "fingerprint"),
    ],
)
def test_what_a_report_reads_of_a_generated_corpus_is_checked(
    declared: dict[str, Any], value: dict[str, Any], field: str
) -> None:
    assert f"field '{field}' is not" in (checked_json.fault(value, declared) or "")


@pytest.mark.parametrize("rule", ["", "+dropout:0.3", "+dropout:1e-05", "+layers:12"])
def test_fingerprints_of_models(rule: str) -> None:
    model = {"name": "good", "fingerprint": f"sha256:{'0a' * 32}{rule}"}
    assert checked_json.fault(model, manifest_fields.GENERATED["models"]["good"]) is None
