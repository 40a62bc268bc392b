"""Runs that diverge, inputs that are checked before anything is tokenised, and progress within a step."""
# ruff: noqa: F401, F811 (fixtures are imported)

import io
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import PartialState
from safetensors.torch import load_file, save_file

from cdgen import TrainConfig, train
from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.storage import runs
from cdgen.storage.folder import file_sha256
from cdgen.storage.progress import Lines
from cdgen.training import tokens, trainer
from cdgen.training.model import build
from tests.helpers.small_runs import BLOCK, command, data, settings, write_config
from tests.helpers.tiny_models import make_tokenizer

# ------------------------------------------------------------------------------------------------ divergence


def strict_json(path: Path) -> list[Any]:
    """Return the lines of a file, none of which may hold NaN or Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{path.name}: {constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_a_perplexity_that_no_float_holds_is_recorded_as_none(settings, tmp_path) -> None:
    """exp(test loss) overflows; the checkpoint is saved, and the log has the loss."""
    given = settings(tmp_path / "run", steps=2, save_every=1, warmup_steps=0, learning_rate=100)
    run = train(TrainConfig(**given))
    assert [(one.step, one.perplexity) for one in run.checkpoints] == [(1, None), (2, None)]
    assert run.best == run.latest == run.checkpoints[1]
    assert (run.latest.model, run.latest.folder) == (f"{tmp_path / 'run'}@2", tmp_path / "run" / "step_000002")
    assert runs.resolve(run.latest.model) == str(run.latest.folder) and "checkpoints" not in repr(run)
    records = strict_json(tmp_path / "run" / "log.jsonl")
    assert [record["test_loss"] > 710 for record in records if "test_loss" in record] == [True, True]
    assert runs.resolve(f"{tmp_path / 'run'}@best").endswith("step_000002")


def test_a_run_that_diverges_keeps_its_checkpoints_and_writes_no_others(settings, tmp_path, monkeypatch) -> None:
    """The loss on the test text becomes NaN at step 3."""
    losses = iter([5.0, 4.0, math.nan])
    monkeypatch.setattr(trainer, "evaluate", lambda *arguments: next(losses))
    given = settings(tmp_path / "run", steps=5, save_every=1, warmup_steps=1)
    with pytest.raises(InputError, match="step 3: the loss on the test text is nan; lower learning_rate"):
        train(TrainConfig(**given))
    assert sorted(path.name for path in (tmp_path / "run").glob("*step*")) == ["step_000001", "step_000002"]
    strict_json(tmp_path / "run" / "log.jsonl")
    assert runs.resolve(f"{tmp_path / 'run'}@best").endswith("step_000002")


def test_weights_that_are_not_finite_are_not_saved(settings, tmp_path) -> None:
    """A run without a test text notices only the weights. Without a checkpoint, it may start with other settings."""
    given = settings(tmp_path / "run", corpus=settings("")["synthetic"][0], steps=1, warmup_steps=0, learning_rate=3e38)
    with pytest.raises(InputError, match=r"step 1: \S+ has a weight that is not finite; lower learning_rate"):
        train(TrainConfig(**given))
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["log.jsonl", "run.json"]
    assert train(TrainConfig(**given | {"learning_rate": 1e-3})).latest.step == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_changes_no_weight(value, settings, tmp_path, monkeypatch) -> None:
    seen = {}

    def clip(accelerator: Any, parameters: Any, norm: float) -> torch.Tensor:
        seen["parameters"] = list(parameters)
        seen["before"] = [x.detach().clone() for x in seen["parameters"]]
        return torch.tensor(value)

    monkeypatch.setattr(trainer.Accelerator, "clip_grad_norm_", clip)
    with pytest.raises(InputError, match=f"step 1: the norm of the gradient is {value}; lower learning_rate"):
        train(TrainConfig(**settings(tmp_path / "run", steps=1, warmup_steps=0)))
    assert all(torch.equal(x, y) for x, y in zip(seen["parameters"], seen["before"], strict=True))


def test_a_warm_up_longer_than_the_run_is_reported(settings, tmp_path, caplog) -> None:
    train(TrainConfig(**settings(tmp_path / "run", steps=2, warmup_steps=3)))
    (said,) = caplog.messages
    assert said == "warmup_steps = 3: is more than steps = 2, so the learning rate never reaches 0.001"


def test_positions_that_are_never_trained_are_reported(settings, tmp_path, caplog) -> None:
    write_config(tmp_path / "shape", max_position_embeddings=BLOCK + 1)
    train(TrainConfig(**settings(tmp_path / "run", model=tmp_path / "shape", steps=2, warmup_steps=0)))
    (said,) = caplog.messages
    assert "has 33 positions, but blocks have 32 tokens" in said and "set max_position_embeddings = 32" in said


# ------------------------------------------------------------------------------------------------ early checks


def test_everything_else_is_checked_before_texts_are_tokenised(settings, tmp_path, monkeypatch) -> None:
    given = settings(tmp_path / "run", steps=1, warmup_steps=1)
    train(TrainConfig(**given))

    def fail(*arguments: Any) -> None:
        raise AssertionError("a text was tokenised")

    monkeypatch.setattr(tokens, "_make", fail)
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match="was started with seed = 42, but now seed = 43"):
        train(TrainConfig(**given | {"seed": 43}))
    (tmp_path / "run" / "step_000001" / "state.safetensors").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"state\.safetensors: is missing, truncated or altered"):
        train(TrainConfig(**given))
    given["out"] = str(tmp_path / "new")
    with pytest.raises(InputError, match="nowhere: no such file or folder"):
        train(TrainConfig(**given | {"test": "nowhere"}))
    with pytest.raises(InputError, match=f"block_size = {BLOCK + 1}: the model"):
        train(TrainConfig(**given | {"block_size": BLOCK + 1}))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'tensorboard: is not installed; .*pip install "\.\[train\]"'):
        train(TrainConfig(**given | {"tensorboard": True}))
    make_tokenizer(bos=False).save_pretrained(tmp_path / "bare")
    with pytest.raises(InputError, match="has no BOS or no EOS token"):
        train(TrainConfig(**given | {"tokenizer": str(tmp_path / "bare")}))
    assert not (tmp_path / "new").exists()


def test_the_short_test_text_is_tokenised_first(settings, tmp_path, monkeypatch) -> None:
    """If it is too short, training stops before the long corpus is tokenised."""
    found, make = [], tokens._make

    def watch(texts: Any, tokenizer: Any, folder: Path, name: str) -> None:
        found.append(name)
        make(texts, tokenizer, folder, name)

    monkeypatch.setattr(tokens, "_make", watch)
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "short.jsonl").write_text('{"text": "time"}\n')
    with pytest.raises(InputError, match="has 5 tokens, fewer than one block"):
        train(TrainConfig(**settings(tmp_path / "run", test=str(tmp_path / "short.jsonl"))))
    assert found == [str(tmp_path / "short.jsonl")]


@pytest.mark.parametrize("at", [0, 100, -1])
def test_an_altered_token_cache_is_not_trained_on(at, settings, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    argv = list(map(str, command(settings(tmp_path / "run", steps=1, warmup_steps=1))))
    assert main(argv) == 0
    for path in (tmp_path / "cache" / "tokens").glob("*/tokens.bin"):
        content = bytearray(path.read_bytes())
        content[at] ^= 1
        path.write_bytes(content)
    shutil.rmtree(tmp_path / "run")
    capfd.readouterr()
    assert main(argv) == 1
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "tokens.bin: is truncated or altered; delete the folder" in error


@pytest.mark.parametrize(
    "change", [{"dtype": "int16"}, {"dtype": "object"}, {"tokens": 3}, {"sha256": {}}, {"sha256": 3}]
)
def test_an_altered_description_of_the_cache_is_reported(change, tmp_path) -> None:
    tokens.tokenize(lambda: iter(["One fish."]), make_tokenizer(), tmp_path / "pool", "books")
    path = tmp_path / "pool" / "pool.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorpusError, match=r"pool\.json: is damaged; delete the folder .*pool and rerun"):
        tokens.TokenFile(tmp_path / "pool")


@pytest.mark.parametrize("name", ["pool.json", "tokens.bin"])
def test_a_pipe_in_the_cache_is_reported(name, tmp_path) -> None:
    tokens.tokenize(lambda: iter(["One fish."]), make_tokenizer(), tmp_path / "pool", "books")
    (tmp_path / "pool" / name).unlink()
    os.mkfifo(tmp_path / "pool" / name)
    with pytest.raises(CorpusError, match=f"pool: cannot be read: .*is not a regular file: .*{name}"):
        tokens.TokenFile(tmp_path / "pool")


def test_a_model_has_a_row_for_the_greatest_token_id() -> None:
    """A tokenizer may leave ids unused, so that it has fewer entries than its greatest id."""

    class Holes:
        bos_token_id, eos_token_id = 0, 1

        def get_vocab(self) -> dict[str, int]:
            return {"<s>": 0, "</s>": 1, "word": 400}

        def __len__(self) -> int:
            return 3

    lm = build(TrainConfig("corpus", "tokenizer", "out", model="tiny"), Holes())
    assert lm.get_input_embeddings().weight.shape[0] == lm.config.vocab_size == 401


def test_a_config_is_refused_if_the_greatest_token_id_does_not_fit(data) -> None:
    """The config is named by its file."""

    class Holes:
        bos_token_id, eos_token_id = 0, 1

        def get_vocab(self) -> dict[str, int]:
            return {"<s>": 0, "word": 4000}

    with pytest.raises(InputError, match=r"has a vocabulary of \d+, but the tokenizer tokenizer has 4001 entries"):
        build(TrainConfig("corpus", "tokenizer", "out", model=str(data / "shape" / "config.json")), Holes())


@pytest.mark.parametrize("change", ["cut", "deleted", "other parameters", "other shape"])
def test_a_state_that_run_json_does_not_vouch_for_is_refused(change, settings, tmp_path) -> None:
    """run.json was edited: it lists no checksum of the optimizer's state, or that of another model's."""
    out = tmp_path / "run"
    given = settings(out, steps=2, save_every=2, warmup_steps=1)
    train(TrainConfig(**given))
    state = out / "step_000002" / "state.safetensors"
    run = json.loads((out / "run.json").read_text())
    moments = load_file(state)
    key = min(moments)
    if change == "cut":
        state.write_bytes(state.read_bytes()[:-1])
        del run["checkpoints"][0]["files"][state.name]
    elif change == "deleted":
        state.unlink()
        del run["checkpoints"][0]["files"][state.name]
    else:
        moments |= {"another": moments.pop(key)} if change == "other parameters" else {key: torch.zeros(3)}
        save_file(moments, state)
        run["checkpoints"][0]["files"][state.name] = file_sha256(state)
    (out / "run.json").write_text(json.dumps(run))
    reason = "is missing, truncated or altered; delete" if change in ("cut", "deleted") else f"model: {key} is missing"
    with pytest.raises(CorpusError, match=rf"state\.safetensors: .*{re.escape(reason)}"):
        train(TrainConfig(**given))


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "two", "RANK": "0", "LOCAL_RANK": "0"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "99999999"},
        {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "x"},
        {"ACCELERATE_USE_DEEPSPEED": "true"},
    ],
)
def test_an_environment_that_accelerate_cannot_use_is_reported_in_one_line(
    environment, settings, tmp_path, cdgen_command
) -> None:
    argv = command(settings(tmp_path / "run", steps=1))
    code, printed = cdgen_command(*argv, **environment, OMP_NUM_THREADS="1")  # unset, accelerate warns about it
    assert code == 2 and printed.count("\n") == 1, printed
    assert printed.startswith("cdgen: error: accelerate cannot start: ") and "check the launcher" in printed


def test_an_unknown_implementation_is_reported_in_one_line(settings, tmp_path) -> None:
    argv = [sys.executable, "-m", "cdgen", *map(str, command(settings(tmp_path / "run", steps=1)))]
    done = subprocess.run(argv, env=os.environ | {"CDGEN_IMPL": "nonsense"}, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "CDGEN_IMPL=nonsense: no such implementation" in done.stderr


def test_a_later_run_in_one_process_chooses_its_device_anew(settings, tmp_path, monkeypatch) -> None:
    """accelerate keeps the device of the first run otherwise."""
    train(TrainConfig(**settings(tmp_path / "run", steps=1, warmup_steps=1)))
    PartialState._shared_state["device"] = torch.device("meta")  # stands for the device of an earlier run
    train(TrainConfig(**settings(tmp_path / "new", steps=1, warmup_steps=1)))
    assert runs.read(tmp_path / "new")["environments"][0]["device"] == "cpu"


# ------------------------------------------------------------------------------------------------ progress


def test_progress_is_shown_within_a_step(settings, tmp_path, monkeypatch) -> None:
    """Every micro-batch counts its tokens, so the rate and the time left are known before the first step ends."""
    monkeypatch.setenv("CDGEN_CACHE", str(tmp_path / "cache"))
    stream = io.StringIO()
    train(
        TrainConfig(**settings(tmp_path / "run", steps=2, warmup_steps=1, micro_batch_size=2)), Lines(stream, every=0)
    )
    lines = stream.getvalue().splitlines()
    assert re.match(r"0 MB tokenised, \d+ MB/s", lines[0]), "tokenising is shown as well"
    before = lines[: next(number for number, line in enumerate(lines) if line.startswith("1 of 2 steps"))]
    assert [line for line in before if "micro-batch 2 of 4" in line and " left" in line and " 0 tokens/s" not in line]
    assert any("evaluating: block " in line for line in lines)
    assert "evaluating" not in lines[-1] and "step_000002: loss" in lines[-1]
