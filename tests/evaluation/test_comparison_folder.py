"""The folder of a comparison."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from cdgen.errors import CorpusError
from cdgen.evaluation.comparison.folder import read, write
from cdgen.storage import manifest as manifests
from tests.evaluation.test_tables import comparison

NAMES = ["comparison.json", "comparison.md", "comparison.tex"]


def test_a_comparison_is_replaced_by_a_rerun(tmp_path: Path) -> None:
    write(comparison(), tmp_path / "out")
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert found["methods"][1]["mean_relative_change"]["interval"] == [0.012, 0.084]
    assert found["results"][1]["runs"][1] == {"model": "b", "seed": 43, "step": 1000, "value": 0.72}
    assert manifests.is_whole(tmp_path / "out")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}
    write(comparison("other"), tmp_path / "out")
    after = {name: (tmp_path / "out" / name).read_bytes() for name in NAMES}
    assert not {*before.values()} & {*after.values()}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == NAMES


def test_an_interrupted_rerun_can_be_repeated(tmp_path: Path) -> None:
    write(comparison(), tmp_path / "new")
    write(comparison("other"), tmp_path / "out")
    (tmp_path / "new/comparison.md").replace(tmp_path / "out/comparison.md")  # renamed before the process was killed
    write(comparison(), tmp_path / "out")
    assert "contrastive" in (tmp_path / "out/comparison.tex").read_text()
    (tmp_path / "out/comparison.json").unlink()  # as if the first run had been killed
    write(comparison(), tmp_path / "out")
    assert manifests.is_whole(tmp_path / "out")


@pytest.mark.parametrize("name", ["comparison.md", "comparison.tex", "comparison.json"])
def test_foreign_and_changed_files_stay(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CorpusError, match=r"is in the way|cannot be read|is not a manifest"):
        write(comparison(), tmp_path)
    (tmp_path / name).unlink()
    write(comparison(), tmp_path)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CorpusError, match=f"{name}: (was changed since cdgen wrote it|cannot be read).*; move it, or"):
        write(replace(comparison(), seed=1), tmp_path)
    assert (tmp_path / name).read_text() == "mine"


def test_a_folder_of_another_kind_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(manifests.new(manifests.RESULTS)))
    with pytest.raises(CorpusError, match="describes results of an evaluation, not a comparison"):
        write(comparison(), tmp_path)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    write(comparison(), tmp_path)
    assert read(tmp_path) == comparison()


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('"baseline": "real"', '"baseline": "other"', "the baseline is not the first method"),
        ('"resamples": ', '"resamples": "x', "cannot be read"),
        ('"p": ', '"q": ', "has no field 'methods[1].mean_relative_change.p'"),
        ('"interval": [', '"interval": [0.5,', "too many values to unpack"),
        ('"task": "', '"task": "no ', "a method has no result on a task"),
    ],
)
def test_a_damaged_comparison(tmp_path: Path, before: str, after: str, reason: str) -> None:
    write(comparison(), tmp_path)
    path = tmp_path / "comparison.json"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    with pytest.raises(CorpusError, match=rf"comparison\.json: .*{re.escape(reason)}"):
        read(tmp_path)
