"""Run folders: checkpoints by name wherever a model is named, and what `cdgen models ls` says of them."""

import json
import shutil

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs


@pytest.fixture
def run(tmp_path, folders):
    """Checkpoints 50 (perplexity 30), 100 (20), 150 (20) and 170 (none); 100 is GOOD's weights, the others BAD's."""
    folder = tmp_path / "run"
    folder.mkdir()
    found = []
    for step, perplexity in ((50, 30.0), (100, 20.0), (150, 20.0), (170, None)):
        shutil.copytree(folders["good" if step == 100 else "bad"], folder / runs.checkpoint_name(step))
        found.append({"step": step, "loss": 200 / step, "perplexity": perplexity, "files": {}})
    (folder / "run.json").write_text(json.dumps({"checkpoints": found}))
    return folder


@pytest.mark.parametrize(("name", "step"), [("best", 100), ("latest", 170), ("50", 50), ("100", 100), ("150", 150)])
def test_a_checkpoint_by_name(run, name, step):
    """The lowest perplexity is best, the earliest of equals, whatever the loss."""
    assert runs.resolve(f"{run}@{name}") == str(run / f"step_{step:06d}")


def test_other_names_are_left_alone(run, folders, tmp_path):
    shutil.copytree(folders["bare"], tmp_path / "odd@best")
    for name in (folders["good"], "owner/name", "owner/name@main", tmp_path / "odd@best", run / "step_000050"):
        assert runs.resolve(name) == name


def test_models_are_loaded_by_name(run, folders, tokenizer):
    """GOOD and BAD out of one run, as in the paper's best setting."""
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    by_name = ContrastiveLM(f"{run}@best", f"{run}@50")
    plain = ContrastiveLM(folders["good"], folders["bad"])
    texts = [lm.generate(["Once upon"], params)[0].outputs[0].token_ids for lm in (by_name, plain)]
    assert texts[0] == texts[1] and by_name.pair.good.fingerprint == plain.pair.good.fingerprint


def test_names_that_are_no_checkpoint(run, tmp_path, folders):
    choices = "50, 100, 150, 170, best, latest"
    with pytest.raises(InputError, match=f"run: is a run; name a checkpoint, as {run}@best; it has {choices}$"):
        ContrastiveLM(run)
    for which in ("60", "worst"):
        with pytest.raises(InputError, match=f"run@{which}: no such checkpoint; {run} has {choices}$"):
            runs.resolve(f"{run}@{which}")
    with pytest.raises(InputError, match=r"no folder of a run, which has a run\.json"):
        runs.resolve(f"{folders['good']}@best")
    (run / "run.json").write_text('{"checkpoints": []}')
    with pytest.raises(InputError, match="it has none yet"):
        runs.resolve(run)
    (run / "run.json").write_text('{"checkpoints": [{"st')
    with pytest.raises(CorpusError, match=r"run\.json: cannot be read"):
        runs.resolve(f"{run}@best")


def test_a_checkpoint_that_was_deleted_is_no_choice(run):
    shutil.rmtree(run / "step_000100")
    assert runs.resolve(f"{run}@best") == str(run / "step_000150")
    with pytest.raises(InputError, match="run@100: no such checkpoint"):
        runs.resolve(f"{run}@100")


def test_models_ls(run, capsys, tmp_path):
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
    assert error == f"cdgen: error: {tmp_path}: is no folder of a run, which has a run.json\n"
