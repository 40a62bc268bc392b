"""Training runs that are killed, interrupted or out of space: they go on to the same weights."""
# ruff: noqa: F401, F811 (fixtures are imported)

import json
import os
import shutil
import signal
import time

import pytest
import torch
from safetensors.torch import load_file

from cdgen import TrainConfig, train
from cdgen.errors import CorpusError
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
    unbroken,
    write_config,
)


def on_cpu(data):
    """Environment of a process of its own."""
    return {"CDGEN_CACHE": str(data / "cache"), "ACCELERATE_USE_CPU": "true"}


def test_a_killed_run_resumes_to_the_same_weights(settings, unbroken, cdgen_command, tmp_path, data):
    """kill -9 in step 97 or soon after, between the checkpoints of steps 80 and 120."""
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
    assert code == 0 and "200 steps to train, 80 done before" in output
    assert_same_run(out, unbroken)


def test_noise_follows_from_the_step(settings, tmp_path):
    """A model with dropout, resumed halfway."""
    write_config(tmp_path / "shape", attention_dropout=0.2)
    given = settings(tmp_path / "run", model=tmp_path / "shape", steps=10, save_every=5)
    train(TrainConfig(**given))
    before = load_file(tmp_path / "run" / "step_000010" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "step_000010")
    train(TrainConfig(**given))
    after = load_file(tmp_path / "run" / "step_000010" / "model.safetensors")
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_it_comes_in(number, settings, unbroken, cdgen_command, tmp_path, data):
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
    assert output.splitlines()[-1].startswith(f"cdgen: interrupted; saved as step {step}, and the same command goes on")
    train(TrainConfig(**settings(out)))
    assert_same_run(out, unbroken)
    assert not (out / f"step_{step:06d}").exists(), "the next checkpoint takes its place"
    steps = [one["step"] for one in json.loads((out / "run.json").read_text())["checkpoints"]]
    assert steps == list(range(EVERY, STEPS + 1, EVERY))


def test_a_checkpoint_has_its_name_only_when_it_is_whole(settings, tmp_path, monkeypatch):
    """Broken off while it writes its last file; and what a kill leaves, before run.json or before the name, is gone."""
    out, seen, write = tmp_path / "run", [], checkpoints.save_file

    def breaking(tensors, path):
        write(tensors, path)
        seen.append(sorted(folder.name for folder in out.glob("step_*")))
        if len(seen) == 2:
            raise KeyboardInterrupt

    given = settings(out, steps=15, save_every=5)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoints, "save_file", breaking)
        train(TrainConfig(**given))
    assert seen == [[], ["step_000005"]]
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "run.json", "step_000005"]
    for name in (".tmp-step_000010", "step_000010"):
        (out / name).mkdir()
        (out / name / "rest").write_text("of a run that was killed")
    train(TrainConfig(**given))
    assert sorted(path.name for path in out.glob("*step*")) == ["step_000005", "step_000010", "step_000015"]
    assert not (out / "step_000010" / "rest").exists() and (out / "step_000010" / "model.safetensors").exists()


def test_states_are_kept_for_the_last_checkpoints(unbroken):
    kept = sorted(path.parent.name for path in unbroken.glob("*/state.safetensors"))
    assert kept == ["step_000160", "step_000200"]
    assert not list(unbroken.glob(".tmp-*"))


def test_a_checkpoint_cut_short_is_refused_and_the_one_before_offered(settings, unbroken, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    last = out / "step_000200"
    for name in ("model.safetensors", "state.safetensors"):
        content = (last / name).read_bytes()
        (last / name).write_bytes(content[:-1])
        with pytest.raises(CorpusError, match=f"{name}: is missing, cut short or altered; delete {last}, and the same "
                                              "command goes on from step 160"):  # fmt: skip
            train(TrainConfig(**settings(out)))
        (last / name).write_bytes(content)
    shutil.rmtree(last)
    train(TrainConfig(**settings(out)))
    assert_same_run(out, unbroken)
    for name in ("step_000160", "step_000200"):
        (out / name / "state.safetensors").unlink()
    with pytest.raises(CorpusError, match="and the same command begins anew"):
        train(TrainConfig(**settings(out)))


@pytest.mark.parametrize(("limit", "file"), [(100_000, "step_000040"), (4_000, "log.jsonl")])
def test_a_full_disk_is_told_and_the_run_goes_on(limit, file, settings, cdgen_command, tmp_path, data):
    """No file may grow over so many bytes: the weights do not fit, or the log of some steps does not."""
    out = tmp_path / "run"
    code, output = cdgen_command(*command(settings(out, steps=80)), limit=limit, **on_cpu(data))
    assert code == 1 and "Traceback" not in output
    assert f"cdgen: error: {out}/{file}: cannot be written: " in output.splitlines()[-1]
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "run.json"]
    code, output = cdgen_command(*command(settings(out, steps=80)), **on_cpu(data))
    assert code == 0 and "80 steps to train, 0 done before" in output
    assert [record["step"] for record in log_of(out) if "loss" in record] == list(range(1, 81))


def test_the_log_is_cut_where_a_run_goes_on(tmp_path):
    with OutputFolder(tmp_path) as folder:
        (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step')
        log = Log(folder, 2, tensorboard=False)
        log.write(3, loss=1.5)
        log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3, "loss": 1.5}\n'
