"""stages.json and the records of stages: content, damage, earlier versions, and which stages are finished."""

import json
from pathlib import Path
from typing import Any

import pytest

from cdgen.errors import CorpusError
from cdgen.storage import manifest as manifests
from cdgen.storage import stages

RECORD: stages.Record = {"digest": "0a", "seconds": 1.5, "finished": None, "machine": "a CPU", "out": "o"}


def planned(name: str, *inputs: str) -> stages.PlannedStage:
    return {"name": name, "argv": ["train", "--out", f"o/{name}"], "inputs": list(inputs)}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert stages.read(tmp_path) is None
    (tmp_path / "run" / "good").mkdir(parents=True)
    stages.write(tmp_path / "run", "tiny", "o", [planned("good"), planned("model", "good")])
    stages.write_record(tmp_path / "run" / "good", RECORD)
    expected = [planned("good") | {"record": RECORD}, planned("model", "good") | {"record": None}]
    assert stages.read(tmp_path / "run") == {"recipe": "tiny", "out": "o", "stages": expected}
    found = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert (found["kind"], found["format_version"]) == ("experiment", 2)
    record = json.loads((tmp_path / "run" / "good" / "_stage.json").read_text())
    assert (record["kind"], record["format_version"]) == ("stage", 1)


@pytest.mark.parametrize("old", [{}, {"corpus": "0a", "good": "0b"}, {"kind": "experiment", "format_version": 1}])
def test_earlier_versions_held_the_records_themselves(tmp_path: Path, old: dict[str, Any]) -> None:
    (tmp_path / "stages.json").write_text(json.dumps(old))
    assert stages.read(tmp_path) is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "cannot be read"),
        ("null", "is damaged"),
        ("[]", "is damaged"),
        ('{"corpus": 1}', "is damaged"),
        ('{"kind": "run", "format_version": 2}', "is damaged"),
        ('{"kind": "experiment", "format_version": 2, "recipe": "r"}', "is damaged"),
        (
            '{"kind": "experiment", "format_version": 2, "recipe": "r", "out": "o", "stages": [{"name": "a"}]}',
            "is damaged",
        ),
        ('{"kind": "experiment", "format_version": 3}', "has format version 3, but this version of cdgen reads 2"),
    ],
)
def test_damage_and_later_versions(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "stages.json").write_text(content)
    with pytest.raises(CorpusError, match=rf"stages\.json: {reason}"):
        stages.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["\0\0", "{", "null", "{}", '{"kind": "stage", "format_version": 1}', '{"kind": "stage", "format_version": 2}'],
)
def test_a_damaged_record_counts_as_missing(tmp_path: Path, content: str) -> None:
    stages.write(tmp_path, "tiny", "o", [planned("good")])
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / "_stage.json").write_text(content)
    found = stages.read(tmp_path)
    assert found is not None and found["stages"][0]["record"] is None


@pytest.mark.parametrize("seconds", ["1e999", "-5", "NaN", '"a"'])
def test_a_record_with_an_impossible_time_counts_as_missing(tmp_path: Path, seconds: str) -> None:
    stages.write_record(tmp_path, RECORD)
    text = (tmp_path / "_stage.json").read_text()
    assert stages.read_record(tmp_path) is not None and '"seconds": 1.5' in text
    (tmp_path / "_stage.json").write_text(text.replace('"seconds": 1.5', f'"seconds": {seconds}'))
    assert stages.read_record(tmp_path) is None


def write_run(folder: Path, config: str, checksum: str) -> None:
    """Write the manifest of a training run."""
    (folder / "step_000004").mkdir(parents=True, exist_ok=True)
    (folder / "step_000004" / "model.safetensors").touch()
    checkpoint = {"step": 4, "loss": 2.5, "perplexity": 12.5, "files": {"model.safetensors": checksum}}
    run = {
        "config": {"corpus": config},
        "inputs": {},
        "environments": [{"device": config}],
        "checkpoints": [checkpoint],
    }
    (folder / "run.json").write_text(json.dumps(manifests.new("run") | run))


def test_a_stage_is_finished_while_its_command_and_its_inputs_are_the_same(tmp_path: Path) -> None:
    for name in ("good", "model"):
        write_run(tmp_path / name, "a/corpus", "0a")
    one: stages.StageEntry = planned("model", "good") | {"record": None}
    assert not stages.is_finished(tmp_path, one, "o"), "it has no record yet"

    def finish() -> None:
        one["record"] = RECORD | {"digest": stages.digest(tmp_path, one["argv"], one["inputs"], "o")}

    finish()
    assert stages.is_finished(tmp_path, one, "o")
    assert not stages.is_finished(tmp_path, one | {"argv": ["train", "--steps", "9"]}, "o")
    write_run(tmp_path / "good", "b/corpus", "0b")
    assert not stages.is_finished(tmp_path, one, "o"), "GOOD has changed"
    write_run(tmp_path / "good", "b/corpus", "0a")
    assert stages.is_finished(tmp_path, one, "o"), "the same GOOD was trained elsewhere"
    (tmp_path / "model" / "run.json").unlink()
    assert not stages.is_finished(tmp_path, one, "o"), "its output is gone"
    (tmp_path / "model" / "run.json").mkdir()
    assert not stages.is_finished(tmp_path, one, "o"), "its output cannot be read"
    assert not stages.is_finished(tmp_path, one | {"name": "\0"}, "o")


@pytest.mark.parametrize("out", ["o", "/a/b/o", "../o", "a.b+c"])
def test_the_digest_does_not_depend_on_where_the_folder_is(tmp_path: Path, out: str) -> None:
    def digest(place: str, *more: str) -> str:
        argv = ["evaluate", f"real={place}/good@best", "text.txt", "--out", f"{place}/evaluation", *more]
        return stages.digest(tmp_path, argv, [], place)

    assert digest(out) == digest("elsewhere")
    assert digest(out, "1") != digest(out)
    assert digest(out, "a/o/text.txt") != digest(out, "a/OUT/text.txt"), "only whole paths are replaced"
