"""Training runs that are killed, interrupted or out of disk space resume to the same weights."""
# ruff: noqa: F401, F811 (fixtures are imported)

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from cdgen import TrainConfig, train
from cdgen.errors import CorpusError
from cdgen.storage import runs
from cdgen.storage.folder import OutputFolder
from cdgen.training import checkpoints
from cdgen.training.logs import Log
from tests.helpers.small_runs import (
    EVERY,
    STEPS,
    assert_same_run,
    command,
    data,
    log_of,
    settings,
    uninterrupted,
    write_config,
)

pytestmark = pytest.mark.slow


def on_cpu(data: Path) -> dict[str, str]:
    """Return the environment of a separate process."""
    return {"CDGEN_CACHE": str(data / "cache"), "ACCELERATE_USE_CPU": "true"}


def test_a_killed_run_resumes_to_the_same_weights(settings, uninterrupted, cdgen_command, tmp_path, data) -> None:
    """kill -9 comes at step 97 or soon after, between the checkpoints of steps 80 and 120."""
    out = tmp_path / "run"
    argv = command(settings(out))
    child = cdgen_command.start(*argv, **on_cpu(data))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if (out / "log.jsonl").exists() and '"step": 97,' in (out / "log.jsonl").read_text():
            break
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    code, output = cdgen_command.wait()
    assert code == -signal.SIGKILL, output
    assert 97 <= log_of(out)[-1]["step"] < 120 and not (out / "step_000120").exists()
    code, output = cdgen_command(*argv, **on_cpu(data))
    assert code == 0 and "200 steps to train, 80 already done" in output
    assert_same_run(out, uninterrupted)


def test_dropout_depends_on_the_step_alone(settings, tmp_path) -> None:
    """A run of a model with dropout resumes halfway to the same weights."""
    write_config(tmp_path / "shape", attention_dropout=0.2)
    given = settings(tmp_path / "run", model=tmp_path / "shape", steps=10, save_every=5)
    train(TrainConfig(**given))
    before = load_file(tmp_path / "run" / "step_000010" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "step_000010")
    train(TrainConfig(**given))
    after = load_file(tmp_path / "run" / "step_000010" / "model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_it_arrives_in(number, settings, uninterrupted, cdgen_command, tmp_path, data) -> None:
    out = tmp_path / "run"
    child = cdgen_command.start(*command(settings(out)), **on_cpu(data))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "step_000080").exists():
        time.sleep(0.001)
    time.sleep(0.1)
    os.kill(child, number)
    code, output = cdgen_command.wait()
    step = json.loads((out / "run.json").read_text())["checkpoints"][-1]["step"]
    assert code == 128 + number and step > 80 and step % EVERY and log_of(out)[-1]["step"] == step
    assert output.splitlines()[-1].startswith(f"cdgen: interrupted; saved as step {step}, rerun the same command")
    train(TrainConfig(**settings(out)))
    assert_same_run(out, uninterrupted)
    assert not (out / f"step_{step:06d}").exists(), "the next checkpoint replaces it"
    steps = [one["step"] for one in json.loads((out / "run.json").read_text())["checkpoints"]]
    assert steps == list(range(EVERY, STEPS + 1, EVERY))


def test_a_checkpoint_of_an_interruption_does_not_cost_an_earlier_state(settings, tmp_path, monkeypatch) -> None:
    given = settings(tmp_path / "run", steps=15, save_every=5, keep_states=2)
    save = checkpoints.save

    def interrupted(folder: OutputFolder, run: runs.Run, entry: runs.Checkpoint, *rest: Any) -> None:
        save(folder, run, entry, *rest)
        if entry["step"] == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save", interrupted)
        train(TrainConfig(**given))
    assert [one["step"] for one in runs.read(tmp_path / "run")["checkpoints"]] == [5, 6]

    def stopped(folder: OutputFolder, run: runs.Run, entry: runs.Checkpoint, *rest: Any) -> None:
        if entry["step"] == 15:
            raise CorpusError("stopped")
        save(folder, run, entry, *rest)

    with monkeypatch.context() as patch, pytest.raises(CorpusError, match="stopped"):
        patch.setattr(checkpoints, "save", stopped)
        train(TrainConfig(**given))
    states = sorted(path.parent.name for path in (tmp_path / "run").glob("*/state.safetensors"))
    assert states == ["step_000005", "step_000010"]


def test_a_tokenizer_with_several_chat_templates_is_saved_with_checkpoints(settings, tmp_path, data) -> None:
    given = settings(tmp_path / "run", steps=10, save_every=5)
    tokenizer = AutoTokenizer.from_pretrained(given["tokenizer"])
    tokenizer.chat_template = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    given["tokenizer"] = str(tmp_path / "tokenizer")
    train(TrainConfig(**given))
    shutil.rmtree(tmp_path / "run" / "step_000010")
    train(TrainConfig(**given))  # checks the files of the checkpoint that it resumes from
    found = AutoTokenizer.from_pretrained(tmp_path / "run" / "step_000010").chat_template
    assert found == tokenizer.chat_template


def test_an_incomplete_checkpoint_never_has_its_name(settings, tmp_path, monkeypatch) -> None:
    """It is interrupted while its last file is written. The user's own files are never replaced."""
    out, seen, write = tmp_path / "run", [], checkpoints.save_file

    def interrupting(tensors: dict[str, torch.Tensor], path: Path) -> None:
        write(tensors, path)
        seen.append(sorted(folder.name for folder in out.glob("step_*")))
        if len(seen) == 2:
            raise KeyboardInterrupt

    given = settings(out, steps=15, save_every=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save_file", interrupting)
        train(TrainConfig(**given))
    assert seen == [[], ["step_000005"]]
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "run.json", "step_000005"]
    (out / "step_000010").mkdir()
    (out / "step_000010" / "own").write_text("the user's")
    with pytest.raises(CorpusError, match="step_000010: is in the way"):
        train(TrainConfig(**given))
    assert (out / "step_000010" / "own").read_text() == "the user's"
    shutil.rmtree(out / "step_000010")
    train(TrainConfig(**given))
    assert sorted(path.name for path in out.glob("*step*")) == ["step_000005", "step_000010", "step_000015"]


def test_the_last_checkpoints_keep_their_states(uninterrupted) -> None:
    kept = sorted(path.parent.name for path in uninterrupted.glob("*/state.safetensors"))
    assert kept == ["step_000160", "step_000200"]
    assert not list(uninterrupted.glob(".cdgen-*"))


def test_a_truncated_checkpoint_is_refused_and_the_one_before_is_offered(settings, uninterrupted, tmp_path) -> None:
    out = tmp_path / "run"
    shutil.copytree(uninterrupted, out)
    last = out / "step_000200"
    for name in ("model.safetensors", "state.safetensors"):
        content = (last / name).read_bytes()
        (last / name).write_bytes(content[:-1])
        message = f"{name}: is missing, truncated or altered; delete {last} and rerun to resume from step 160"
        with pytest.raises(CorpusError, match=message):
            train(TrainConfig(**settings(out)))
        (last / name).write_bytes(content)
    shutil.rmtree(last)
    train(TrainConfig(**settings(out)))
    assert_same_run(out, uninterrupted)
    (last / "state.safetensors").unlink()
    (out / "step_000160" / "state.safetensors").replace(out / "step_000120" / "state.safetensors")
    message = f"delete {out / 'step_000160'} and {last} and rerun to resume from step 120"
    with pytest.raises(CorpusError, match=message):
        train(TrainConfig(**settings(out)))
    (out / "step_000120" / "state.safetensors").unlink()
    with pytest.raises(CorpusError, match=f"delete {out} and rerun to start from the beginning"):
        train(TrainConfig(**settings(out)))


@pytest.mark.parametrize(("limit", "file"), [(100_000, "step_000040"), (4_000, "log.jsonl")])
def test_a_full_disk_is_reported_and_the_run_resumes(limit, file, settings, cdgen_command, tmp_path, data) -> None:
    """File sizes are limited, so that either the weights or the log of all steps does not fit."""
    out = tmp_path / "run"
    code, output = cdgen_command(*command(settings(tmp_path / "first", steps=1)), **on_cpu(data))
    assert code == 0, output  # the cached tokens are larger than the log
    code, output = cdgen_command(*command(settings(out, steps=80)), limit=limit, **on_cpu(data))
    assert code == 1 and "Traceback" not in output
    assert f"cdgen: error: {out}/{file}: cannot be written: " in output.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "run.json"]
    code, output = cdgen_command(*command(settings(out, steps=80)), **on_cpu(data))
    assert code == 0 and "80 steps to train, 0 already done" in output
    assert [record["step"] for record in log_of(out) if "loss" in record] == list(range(1, 81))


def test_the_log_is_cut_to_the_step_that_a_run_resumes_from(tmp_path) -> None:
    with OutputFolder(tmp_path) as folder:
        (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step')
        log = Log(folder, 2, tensorboard=False)
        log.write(3, loss=1.5)
        log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.5}\n'


DAMAGES = [
    "{\n",
    "[1]\n",
    '{"loss": 1.5}\n',
    '{"step": null}\n',
    '{"step": 1.5}\n',
    "\udcff\n",
    "\0" * 4096 + "\n",
    "[" * 99999 + "\n",
]


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
def test_damaged_lines_of_a_log_are_removed(damage, tmp_path, caplog) -> None:
    """A power failure may leave zeros or anything else in the middle, and part of a line at the end."""
    content = f'{{"step": 1}}\n{damage}{{"step": 3}}\n\0\0{damage[:-1]}'.encode(errors="surrogateescape")
    (tmp_path / "log.jsonl").write_bytes(content)
    with OutputFolder(tmp_path) as folder:
        Log(folder, 3, tensorboard=False).close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 3}\n'
    assert caplog.messages == [f"{tmp_path / 'log.jsonl'}: damaged lines are removed: 2"]
