"""Corpora that training is given: what a manifest lists is read; damaged and unfinished ones are one line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cdgen.corpus.find import find
from cdgen.errors import CorpusError, InputError
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.sources import Source
from cdgen.storage import manifest as manifests
from tests.helpers.prepared import fish, jsonl

MODEL = {"name": "G", "fingerprint": "sha256:0"}
SHARD = {
    "number": 0, "name": "data/train-00000.parquet", "rows": 1, "tokens": 2, "new_tokens": 1, "errors": 0,
    "sha256": "0", "environment": 0,
}  # fmt: skip
GENERATED = manifests.new("generated") | {
    "complete": True, "settings": {"ignore_eos": False, "split_documents": False, "format": "parquet"},
    "models": {"good": MODEL, "bad": None}, "seeds": {"fingerprint": "0"}, "environments": [{}],
    "counts": {"shards": 1, "documents": 1, "tokens": 2, "new_tokens": 1, "errors": 0}, "shards": [SHARD],
}  # fmt: skip
RUN = manifests.new("run") | {"config": {}, "inputs": {}, "environments": [], "checkpoints": []}


def shards(**fields: Any) -> str:
    return json.dumps(GENERATED | {"shards": [SHARD, SHARD | fields]})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"kind": "gener', "cannot be read: Unterminated string"),
        ("[" * 10**5, "cannot be read: it is nested too deeply"),
        ("\xff", "cannot be read: 'utf-8' codec"),
        *((text, "is not a manifest of a generated corpus") for text in ("[]", "{}", "null", '{"kind": 5}', "NaN")),
        (json.dumps(RUN), "describes a training run of an earlier version"),
        (json.dumps(RUN | {"kind": "cake"}), "describes cake, not a generated corpus"),
        (json.dumps(GENERATED | {"format_version": 4}), "has format version 4, but this version of cdgen reads 3"),
        (json.dumps(GENERATED | {"format_version": [3]}), r"has format version \[3\], but"),
        (json.dumps({"kind": "generated", "format_version": 3}), "is damaged: has no field 'settings'"),
        (json.dumps(GENERATED | {"shards": 3}), "is damaged: field 'shards' is not a list"),
        (json.dumps(GENERATED | {"shards": [5]}), r"is damaged: field 'shards\[0\]' is not an object"),
        (json.dumps(GENERATED | {"complete": 1}), "is damaged: field 'complete' is not true or false"),
        (json.dumps(GENERATED | {"models": {"good": None}}), r"is damaged: field 'models\.good' is not an object"),
        (
            json.dumps(GENERATED | {"counts": GENERATED["counts"] | {"tokens": "many"}}),
            r"field 'counts\.tokens' is not a whole number",
        ),
        (shards(number=-1), r"field 'shards\[1\]\.number' is not a whole number of 0 or more"),
        (shards(number=1.5), r"field 'shards\[1\]\.number' is not a whole number of 0 or more"),
        (shards(sha256=None), r"field 'shards\[1\]\.sha256' is not text"),
        (shards(documents={"name": "x"}), r"field 'shards\[1\]\.documents\.name' is not of the form _documents"),
        *((shards(name=name), r"'shards\[1\]\.name' is not of the form data/") for name in ("../x", "/x", "x", 5, "")),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "_manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=f"{reason}.*; name another corpus, or one of its files$") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value) and "_manifest.json: " in str(caught.value)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_corpus([Source("a", jsonl(folder / "a.jsonl", fish(200)))], folder / "out", test=0)
    return folder / "out"


def test_of_a_prepared_corpus_only_what_the_manifest_lists_is_read(prepared: Path, tmp_path: Path) -> None:
    corpus = find(prepared)
    assert corpus.files == (prepared / "train.parquet",)
    out = shutil.copytree(prepared, tmp_path / "out")
    shutil.copy(out / "seeds.parquet", out / "test.parquet")  # no part of the corpus
    with pytest.raises(InputError, match="out: has no test split"):
        find(out, "test")
    shutil.copy(out / "seeds.parquet", out / "train.parquet")
    with pytest.raises(CorpusError, match=r"train\.parquet: is missing, truncated or altered; rerun the command"):
        find(out)
    (out / "train.parquet").unlink()
    with pytest.raises(CorpusError, match=r"train\.parquet: is missing"):
        find(out)


def test_the_manifest_of_a_generated_corpus_comes_before_a_train_parquet(prepared: Path, tmp_path: Path) -> None:
    out = shutil.copytree(prepared, tmp_path / "out")
    (out / "_manifest.json").write_text(json.dumps(GENERATED | {"complete": False}))
    with pytest.raises(InputError, match="is not finished"):
        find(out)
    (out / "_manifest.json").write_text(json.dumps(GENERATED))
    with pytest.raises(CorpusError, match=r"data/train-00000\.parquet: is missing, truncated or altered"):
        find(out)


def test_damaged_counts_and_files_of_a_prepared_corpus(prepared: Path, tmp_path: Path) -> None:
    manifest = json.loads((prepared / "manifest.json").read_text())
    for fields, fault in (
        ({"counts": []}, "field 'counts' is not an object"),
        ({"counts": manifest["counts"] | {"train": 5}}, r"field 'counts\.train' is not an object"),
        ({"files": ["train.parquet"]}, "field 'files' is not an object"),
        ({"files": {"train.parquet": "0"}}, r"field 'files\.train\.parquet' is not an object"),
        ({"files": {"../../x": {"sha256": "0"}}}, r"field 'files\.\.\./\.\./x' is not of the form"),
    ):
        out = shutil.copytree(prepared, tmp_path / "out", dirs_exist_ok=True)
        (out / "manifest.json").write_text(json.dumps(manifest | fields))
        for overwrite in (False, True):
            with pytest.raises(CorpusError, match=rf"manifest\.json: is damaged: {fault}"):
                prepare_corpus([Source("a", jsonl(tmp_path / "a.jsonl", fish(200)))], out, overwrite=overwrite)
        with pytest.raises(InputError, match=rf"manifest\.json: is damaged: {fault}"):
            find(out)


def test_the_format_of_a_file_is_part_of_its_fingerprint(tmp_path: Path) -> None:
    """The same bytes are one text in a .txt file, and a text per line in a .jsonl file."""
    for name in ("a.txt", "a.jsonl"):
        (tmp_path / name).write_text('{"text": "one"}\n{"text": "two"}\n')
    text, lines = find(tmp_path / "a.txt"), find(tmp_path / "a.jsonl")
    assert len(list(text.texts())) == 1 and len(list(lines.texts())) == 2
    assert text.fingerprint != lines.fingerprint


def test_an_empty_name_is_no_corpus() -> None:
    with pytest.raises(InputError, match="'': no such file or folder"):
        find("")
