"""Training runs: checkpoints by name, `cdgen models ls`, and run.json of earlier versions."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from cdgen import ContrastiveLM, SamplingParams
from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs


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


def test_damaged_checkpoint_lists_and_other_kinds(run: Path) -> None:
    for checkpoints in ([{"loss": 1.0}], [5], {"step": 5}, None):
        write_run_json(run, checkpoints=checkpoints)
        with pytest.raises(CorpusError, match=r"run\.json: its list of checkpoints is damaged; restore it, or choose"):
            runs.read(run)
    write_run_json(run, kind="tokenizer")
    with pytest.raises(CorpusError, match=r"run\.json: describes a tokenizer, not a training run; restore it"):
        runs.read(run)
    write_run_json(run, format_version=7)
    with pytest.raises(CorpusError, match=r"has format version 7, but this version of cdgen reads 1 to 2; restore it"):
        runs.read(run)


def test_format_version_1_is_read(run: Path) -> None:
    """Version 1 had neither `kind` nor `format_version`."""
    now = runs.read(run)
    old = json.loads((run / "run.json").read_text())
    del old["kind"], old["format_version"]
    old["runs"] = old.pop("environments")
    (run / "run.json").write_text(json.dumps(old))
    assert runs.read(run) == now and now is not None and now["format_version"] == 2


def test_a_run_begins_with_the_same_config_and_inputs(run: Path, tmp_path: Path) -> None:
    write_run_json(run, config={"corpus": "here", "steps": 5}, inputs={"corpus": ["sha"]})
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
    with pytest.raises(CorpusError, match=r"run: holds step_000050 but no run\.json; choose another folder"):
        runs.begin(run, {}, {})


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
