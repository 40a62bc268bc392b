"""stages.json: its content, damage, earlier versions, and which stages are finished."""

import json
from pathlib import Path

import pytest

from cdgen.errors import CorpusError
from cdgen.storage import manifest as manifests
from cdgen.storage import stages


def entry(name: str, *inputs: str) -> stages.StageEntry:
    return {
        "name": name,
        "argv": ["train", "--out", f"o/{name}"],
        "inputs": list(inputs),
        "digest": None,
        "seconds": 1.5,
        "finished": None,
    }


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert stages.read(tmp_path) is None
    written = stages.new("tiny", [entry("good"), entry("model", "good")])
    stages.write(tmp_path / "run", written)
    assert stages.read(tmp_path / "run") == written
    found = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert (found["kind"], found["format_version"], found["recipe"]) == ("experiment", 1, "tiny")


@pytest.mark.parametrize("old", [{}, {"corpus": "0a", "good": "0b"}])
def test_an_earlier_version_held_digests_alone(tmp_path: Path, old: dict[str, str]) -> None:
    (tmp_path / "stages.json").write_text(json.dumps(old))
    assert stages.read(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("null", "is damaged"),
        ("[]", "is damaged"),
        ('{"corpus": 1}', "is damaged"),
        ('{"kind": "run", "format_version": 1}', "is damaged"),
        ('{"kind": "experiment", "format_version": 1, "recipe": "r"}', "is damaged"),
        ('{"kind": "experiment", "format_version": 1, "recipe": "r", "stages": [{"name": "a"}]}', "is damaged"),
        ('{"kind": "experiment", "format_version": 2}', "has format version 2, but this version of cdgen reads 1"),
    ],
)
def test_damage_and_later_versions(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "stages.json").write_text(content)
    with pytest.raises(CorpusError, match=rf"stages\.json: {reason}"):
        stages.read(tmp_path)


def test_a_stage_is_finished_while_its_command_and_its_inputs_are_the_same(tmp_path: Path) -> None:
    one = entry("model", "good")
    for name in ("good", "model"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(json.dumps(manifests.new("run")))
    assert not stages.is_finished(tmp_path, one), "it has no digest yet"
    one["digest"] = stages.digest(tmp_path, one["argv"], one["inputs"])
    assert stages.is_finished(tmp_path, one)
    assert not stages.is_finished(tmp_path, one | {"argv": ["train", "--steps", "9"]})
    (tmp_path / "good" / "run.json").write_text("{}")
    assert not stages.is_finished(tmp_path, one), "GOOD has changed"
    one["digest"] = stages.digest(tmp_path, one["argv"], one["inputs"])
    (tmp_path / "model" / "run.json").unlink()
    assert not stages.is_finished(tmp_path, one), "its output is gone"
    (tmp_path / "model" / "run.json").mkdir()
    assert not stages.is_finished(tmp_path, one), "its output cannot be read"
    assert not stages.is_finished(tmp_path, one | {"name": "\0"})
