"""Training runs: checkpoints by name, `cdgen models ls`, and damaged or foreign folders."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder

CHECKPOINT = {"step": 50, "loss": 1.0, "perplexity": None, "files": {}}


def write_run_json(folder: Path, **fields: Any) -> None:
    run = {"kind": "run", "format_version": 2, "config": {}, "inputs": {}, "environments": [], "checkpoints": []}
    (folder / "run.json").write_text(json.dumps(run | fields))


@pytest.fixture
def run(tmp_path: Path, folders: dict[str, Path]) -> Path:
    """Return a run with perplexities 30, 20, 20 and none. Step 100 has GOOD's weights, the others have BAD's."""
    folder = tmp_path / "run"
    folder.mkdir()
    found = []
    for step, perplexity in ((50, 30.0), (100, 20.0), (150, 20.0), (170, None)):
        shutil.copytree(folders["good" if step == 100 else "bad"], folder / runs.checkpoint_name(step))
        found.append({"step": step, "loss": 200 / step, "perplexity": perplexity, "files": {}})
    write_run_json(folder, checkpoints=found)
    return folder


@pytest.mark.parametrize(("name", "step"), [("best", 100), ("latest", 170), ("50", 50), ("100", 100), ("150", 150)])
def test_a_checkpoint_by_name(run: Path, name: str, step: int) -> None:
    """The first checkpoint with the lowest perplexity is best, whatever its loss."""
    assert runs.resolve(f"{run}@{name}") == str(run / f"step_{step:06d}")


@pytest.mark.parametrize(
    ("perplexities", "best"),
    [
        ((math.nan, 30.0, 20.0, math.inf), 150),
        ((20.0, math.nan, math.nan, math.nan), 50),
        ((math.nan, math.nan, math.inf, -math.inf), 170),
        ((-math.inf, 30.0, None, math.nan), 100),
        ((40.0, 30.0, 0.0, -5.0), 100),
    ],
)
def test_a_perplexity_that_is_not_finite_is_never_best(
    run: Path, perplexities: tuple[float | None, ...], best: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """If no perplexity is finite, the last checkpoint is best, as if none were known."""
    found = json.loads((run / "run.json").read_text())["checkpoints"]
    for one, perplexity in zip(found, perplexities, strict=True):
        one["perplexity"] = perplexity
    write_run_json(run, checkpoints=found)
    assert runs.resolve(f"{run}@best") == str(run / f"step_{best:06d}")
    assert main(["models", "ls", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines if "best" in line] == [str(best)]
    assert not any("nan" in line or "inf" in line or "-5" in line for line in lines)


def test_other_names_are_left_alone(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["bare"], tmp_path / "odd@best")
    for name in (folders["good"], "owner/name", "owner/name@main", tmp_path / "odd@best", run / "step_000050"):
        assert runs.resolve(name) == name


def test_models_are_loaded_by_name(run: Path, folders: dict[str, Path], tokenizer: PreTrainedTokenizerFast) -> None:
    """GOOD and BAD are checkpoints of one run, as in the best setting of the paper."""
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    by_name = ContrastiveLM(f"{run}@best", f"{run}@50")
    plain = ContrastiveLM(folders["good"], folders["bad"])
    token_ids = [lm.generate(["Once upon"], params)[0].outputs[0].token_ids for lm in (by_name, plain)]
    assert token_ids[0] == token_ids[1] and by_name.pair.good.fingerprint == plain.pair.good.fingerprint


def test_names_that_match_no_checkpoint(run: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    choices = "50, 100, 150, 170, best, latest"
    with pytest.raises(
        InputError, match=f"run: is a training run; name one of its checkpoints, such as {run}@best; it has {choices}$"
    ):
        ContrastiveLM(run)
    for which in ("60", "worst"):
        with pytest.raises(InputError, match=f"run@{which}: no such checkpoint; {run} has {choices}$"):
            runs.resolve(f"{run}@{which}")
    with pytest.raises(InputError, match=r"is not a training run \(it has no run\.json\)"):
        runs.resolve(f"{folders['good']}@best")
    write_run_json(run)
    with pytest.raises(InputError, match="it has none yet"):
        runs.resolve(run)
    (run / "run.json").write_text('{"checkpoints": [{"st')
    with pytest.raises(CorpusError, match=r"run\.json: cannot be read"):
        runs.resolve(f"{run}@best")


def test_a_deleted_checkpoint_is_not_offered(run: Path) -> None:
    shutil.rmtree(run / "step_000100")
    assert runs.resolve(f"{run}@best") == str(run / "step_000150")
    with pytest.raises(InputError, match="run@100: no such checkpoint"):
        runs.resolve(f"{run}@100")


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"checkpoints": [{"loss": 1.0}]}, r"has no field 'checkpoints\[0\]\.step'"),
        ({"checkpoints": [5]}, r"field 'checkpoints\[0\]' is not an object"),
        ({"checkpoints": {"step": 5}}, "field 'checkpoints' is not a list"),
        ({"checkpoints": None}, "field 'checkpoints' is not a list"),
        ({"checkpoints": [CHECKPOINT | {"step": "50"}]}, r"'checkpoints\[0\]\.step' is not a whole number"),
        ({"checkpoints": [CHECKPOINT | {"step": True}]}, r"'checkpoints\[0\]\.step' is not a whole number"),
        ({"checkpoints": [CHECKPOINT, CHECKPOINT | {"loss": None}]}, r"'checkpoints\[1\]\.loss' is not a number"),
        (
            {"checkpoints": [CHECKPOINT | {"files": {"../x": "0"}}]},
            r"'checkpoints\[0\]\.files\.\.\./x' is not of the form",
        ),
        ({"checkpoints": [CHECKPOINT | {"files": {"x": 0}}]}, r"'checkpoints\[0\]\.files\.x' is not text"),
        ({"checkpoints": [CHECKPOINT | {"files": {"..": "0"}}]}, r"'checkpoints\[0\]\.files\.\.\.' is not of the form"),
        ({"checkpoints": [CHECKPOINT | {"loss": 10**400}]}, r"'checkpoints\[0\]\.loss' is not a number"),
        ({"checkpoints": [CHECKPOINT | {"perplexity": 10**400}]}, r"'checkpoints\[0\]\.perplexity' is not a number"),
        ({"checkpoints": [CHECKPOINT, CHECKPOINT]}, "the steps of its checkpoints do not increase"),
        ({"checkpoints": [CHECKPOINT, CHECKPOINT | {"step": 20}]}, "the steps of its checkpoints do not increase"),
        ({"config": []}, "field 'config' is not an object"),
        ({"config": None}, "field 'config' is not an object"),
        ({"inputs": "sha"}, "field 'inputs' is not an object"),
        ({"environments": [None]}, r"field 'environments\[0\]' is not an object"),
    ],
)
def test_a_damaged_run_json_is_one_line(run: Path, fields: dict[str, Any], fault: str) -> None:
    write_run_json(run, **fields)
    with pytest.raises(CorpusError, match=rf"run\.json: is damaged: .*{fault}.*; restore it, or choose") as caught:
        runs.read(run)
    assert "\n" not in str(caught.value)


def test_other_kinds_and_versions_are_refused(run: Path) -> None:
    write_run_json(run, kind="tokenizer")
    with pytest.raises(CorpusError, match=r"run\.json: describes a tokenizer of an earlier version"):
        runs.read(run)
    for version in (1, 7, "2", None, True):
        write_run_json(run, format_version=version)
        with pytest.raises(
            CorpusError, match=rf"has format version {version!r}, but this version of cdgen reads 2; rest"
        ):
            runs.read(run)


def test_a_run_begins_with_the_same_config_and_inputs(run: Path, tmp_path: Path) -> None:
    begun = json.loads((run / "run.json").read_text())["checkpoints"]
    write_run_json(run, config={"corpus": "here", "steps": 5}, inputs={"corpus": ["sha"]}, checkpoints=begun)
    moved = runs.begin(run, {"corpus": "there", "steps": 5}, {"corpus": ["sha"]})
    assert moved["config"]["corpus"] == "here", "a text that was moved is unchanged"
    with pytest.raises(
        InputError, match="run: was started with steps = 5, but now steps = 6; use the same value, or choose"
    ):
        runs.begin(run, {"corpus": "here", "steps": 6}, {"corpus": ["sha"]})
    with pytest.raises(InputError, match="run: the content of corpus = here has changed since the run was started"):
        runs.begin(run, {"corpus": "here", "steps": 5}, {"corpus": ["other"]})
    assert runs.begin(tmp_path / "new", {"steps": 5}, {})["checkpoints"] == []
    (run / "run.json").unlink()
    with pytest.raises(CorpusError, match=r"step_000050: is in the way, and no manifest lists it; move it, or choose"):
        runs.begin(run, {}, {})


@pytest.mark.parametrize("name", ["step_000200", "log.jsonl"])
def test_what_a_run_does_not_list_stops_it(run: Path, tmp_path: Path, name: str) -> None:
    """Training would replace it."""
    (folder := tmp_path / "new").mkdir()
    (folder / name).write_text("mine")
    folders = [folder]
    if name != "log.jsonl":  # the log belongs to the run.json beside it
        (run / name).mkdir()
        folders.append(run)
    for out in folders:
        with pytest.raises(CorpusError, match=f"{name}: is in the way"):
            runs.begin(out, {}, {})
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["_manifest.json", "manifest.json"])
def test_training_into_a_folder_of_another_kind_is_refused(tmp_path: Path, name: str) -> None:
    kind = "generated" if name.startswith("_") else "prepared"
    (tmp_path / name).write_text(json.dumps({"kind": kind}))
    with pytest.raises(CorpusError, match=f"{name}: describes a {kind} corpus, not a training run; choose another"):
        runs.begin(tmp_path, {}, {})
    (tmp_path / name).write_text("a file of the user's that has this name")
    assert runs.begin(tmp_path, {}, {})["checkpoints"] == []


def test_a_dropped_checkpoint_is_never_half_there(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it deletes a checkpoint leaves neither part of it nor an error."""
    found = runs.read(run)
    assert found is not None

    def kill(path: Path) -> None:
        assert not (run / "step_000150").exists() and path.name.startswith(".cdgen-")
        raise KeyboardInterrupt

    with OutputFolder(run) as folder:
        monkeypatch.setattr("cdgen.storage.folder._delete", kill)
        with pytest.raises(KeyboardInterrupt):
            runs.drop_checkpoint(folder, found, found["checkpoints"][2])
        monkeypatch.undo()
    with OutputFolder(run):
        pass
    assert not list(run.glob(".cdgen-*"))
    again = runs.begin(run, {}, {})
    assert [one["step"] for one in again["checkpoints"]] == [50, 100, 170]


def test_models_ls(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["models", "ls", str(run)]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["step", "loss", "perplexity"],
        ["50", "4.0000", "30.000"],
        ["100", "2.0000", "20.000", "best"],
        ["150", "1.3333", "20.000"],
        ["170", "1.1765", "-", "latest"],
    ]
    assert main(["models", "ls", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error == f"cdgen: error: {tmp_path}: is not a training run (it has no run.json)\n"
