"""Corpora that training is given: damaged manifests, and folders of another kind, are reported in one line."""

import json
from pathlib import Path

import pytest

from cdgen.errors import InputError
from cdgen.storage import manifest as manifests
from cdgen.training.corpora import find

GENERATED = manifests.new("generated") | {
    "complete": True, "settings": {}, "models": {}, "seeds": {}, "environments": [], "counts": {}, "shards": [],
}  # fmt: skip
RUN = manifests.new("run") | {"config": {}, "inputs": {}, "environments": [], "checkpoints": []}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"kind": "gener', r"manifest\.json: cannot be read: Unterminated string"),
        ("[]", r"manifest\.json: is not a manifest of a generated corpus"),
        ("{}", r"manifest\.json: is not a manifest of a generated corpus"),
        (json.dumps(RUN), r"manifest\.json: describes a training run, not a generated corpus"),
        (json.dumps(RUN | {"kind": "cake"}), r"manifest\.json: describes cake, not a generated corpus"),
        (
            json.dumps(GENERATED | {"format_version": 3}),
            r"has format version 3, but this version of cdgen reads 1 to 2",
        ),
        *(
            (f'{{"shards": {shards}}}', "is not a manifest of a generated corpus")
            for shards in ('["a.tar"]', "3", "null")
        ),
        (json.dumps({"kind": "generated", "format_version": 2}), r"manifest\.json: has no field 'settings'"),
        (json.dumps(GENERATED), r"manifest\.json: is damaged"),
        (json.dumps(GENERATED | {"settings": {"ignore_eos": False}, "shards": [5]}), r"manifest\.json: is damaged"),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_line(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(InputError, match=f"{reason}.*; name another corpus, or one of its files$") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)
