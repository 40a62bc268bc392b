"""TrainConfig: which values it accepts, and the defaults that follow from other values."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdgen import TrainConfig, train
from cdgen.cli import main
from cdgen.errors import InputError


def config(**values: Any) -> TrainConfig:
    return TrainConfig(**{"corpus": "corpus", "tokenizer": "tokenizer", "out": "out"} | values)


@pytest.mark.parametrize("value", [5, np.int32(5), np.array(5), torch.tensor(5), np.uint8(5)])
def test_integers_of_other_libraries_become_pythons(value: Any) -> None:
    for name in ("steps", "batch_size", "seed", "warmup_steps"):
        found = getattr(config(**{name: value}), name)
        assert type(found) is int and found == 5


@pytest.mark.parametrize("value", [0.5, np.float64(0.5), np.float32(0.5), torch.tensor(0.5), np.array(0.5)])
def test_floats_of_other_libraries_become_pythons(value: Any) -> None:
    found = config(learning_rate=value, weight_decay=value, ratio=value, synthetic=["a"])
    assert [found.learning_rate, found.weight_decay, found.ratio] == [0.5] * 3
    assert type(found.learning_rate) is type(found.weight_decay) is type(found.ratio) is float


def test_a_dtype_of_torch_is_its_name() -> None:
    assert config(dtype=torch.bfloat16) == config(dtype="bfloat16")
    with pytest.raises(InputError, match="dtype = 'float16': use float32 or bfloat16"):
        config(dtype=torch.float16)


@pytest.mark.parametrize("value", [{}, None, "corpus"])
def test_training_needs_a_config(value: Any) -> None:
    with pytest.raises(InputError, match=r"config: is of type \w+; use TrainConfig"):
        train(value)


@pytest.mark.parametrize("value", [1.5, 5.0, True, np.True_, torch.tensor(True), "5", None, np.array([1, 2]), [5], 5j])
def test_what_is_no_integer_is_refused(value: Any) -> None:
    for name in ("steps", "batch_size", "micro_batch_size", "block_size", "save_every", "keep_states", "seed"):
        with pytest.raises(InputError, match=f"{name} = .*: must be a whole number"):
            config(**{name: value})


@pytest.mark.parametrize("value", [True, np.False_, "0.1", b"1", [0.1], 1j])
def test_what_is_no_number_is_refused(value: Any) -> None:
    for name in ("learning_rate", "weight_decay", "ratio"):
        with pytest.raises(InputError, match=f"{name} = .*: must be a number"):
            config(**{name: value}, synthetic=["a"])


OUT_OF_RANGE = {
    "learning_rate": (0, -1, 1e300, 1e-50, math.inf, math.nan, 10**400),
    "weight_decay": (-1, 1e300, math.inf, math.nan),
    "ratio": (-0.1, 1.5, math.inf, math.nan),
    "seed": (-1, 2**63, 10**400, 10**5000),
    "steps": (0, 10**30),
    "batch_size": (0, 10**12),
    "micro_batch_size": (0, 10**12),
    "block_size": (1, 10**12),
    "warmup_steps": (-1, 2**63),
    "eval_blocks": (-1, 2**63),
}


@pytest.mark.parametrize("name", OUT_OF_RANGE)
def test_numbers_that_cannot_be_computed_with_are_refused(name: str) -> None:
    for value in OUT_OF_RANGE[name]:
        with pytest.raises(InputError, match=f"^{name} = .*: must be "):
            config(**{name: value}, synthetic=["a"])


def test_a_step_has_a_limited_number_of_tokens() -> None:
    with pytest.raises(InputError, match="batch_size = 1048576: with block_size = 4096, a step has 4294967296 tokens"):
        config(batch_size=2**20, block_size=2**12)


def test_a_negative_zero_is_zero() -> None:
    found = config(ratio=-0.0, weight_decay=-0.0)
    assert math.copysign(1, found.ratio or 0.0) == math.copysign(1, found.weight_decay) == 1


@pytest.mark.parametrize("value", ["", " ", "a\0b", b"a", 5, None])
def test_what_is_no_path_is_refused(value: Any) -> None:
    for name in ("corpus", "tokenizer", "out", "model"):
        with pytest.raises(InputError, match=f"{name} = .*: is not a path"):
            config(**{name: value})
    with pytest.raises(InputError, match=r"synthetic = .*: is not a path"):
        config(synthetic=[value])


def test_paths_become_strings() -> None:
    found = config(corpus=Path("a"), test=Path("b"), synthetic=Path("c"))
    assert (found.corpus, found.test, found.synthetic) == ("a", "b", ("c",))


def test_switches_are_true_or_false() -> None:
    with pytest.raises(InputError, match="compile = 1: must be True or False"):
        config(compile=1)


@pytest.mark.parametrize(("steps", "warmup"), [(8000, 150), (1500, 150), (1000, 100), (100, 10), (5, 0)])
def test_the_default_warm_up_is_shorter_than_the_run(steps: int, warmup: int) -> None:
    assert config(steps=steps).warmup_steps == warmup


def test_a_ratio_needs_synthetic_text_and_at_least_one_row() -> None:
    with pytest.raises(InputError, match=r"ratio = 0\.3: there is no synthetic corpus"):
        config(ratio=0.3)
    with pytest.raises(InputError, match=r"ratio = 0\.001: none of the 256 rows of a batch is synthetic"):
        config(ratio=0.001, synthetic=["a"])


@pytest.mark.parametrize(
    "extra",
    [
        ["--learning-rate", "inf"],
        ["--learning-rate", "1e300"],
        ["--weight-decay", "nan"],
        ["--seed", "9" * 400],
        ["--steps", "1.5"],
        ["--batch-size", "1000000000000"],
        ["--out", ""],
    ],
)
def test_the_command_line_reports_a_bad_value_in_one_line(extra: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    argv = ["train", "--corpus", "corpus", "--tokenizer", "tokenizer", "--out", "out", *extra]
    assert main(argv) == 2
    error = capfd.readouterr().err
    assert error.startswith("cdgen: error: ") and error.count("\n") == 1 and len(error) < 700
