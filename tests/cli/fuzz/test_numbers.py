"""Hostile numbers on the command line; see :mod:`tests.helpers.hostile`."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.hostile import NUMBERS, Command, assert_answer, files_below, fuzz, train

pytestmark = pytest.mark.slow

GENERATE_NUMBERS = (
    "--n", "--max-tokens", "--alpha", "--contrast-strength", "--good-weight", "--temperature", "--top-k", "--top-p",
    "--min-p", "--outside-head", "--no-repeat-ngram-size", "--repetition-penalty", "--presence-penalty",
    "--frequency-penalty", "--logit-bias", "--seed", "--stop-token-ids", "--min-tokens", "--shard-size", "--batch-size",
    "--kv-cache-gb", "--prefix-tokens", "--chunk-words", "--threads",
)  # fmt: skip
TRAIN_NUMBERS = (
    "--ratio", "--batch-size", "--micro-batch-size", "--block-size", "--learning-rate", "--warmup-steps",
    "--weight-decay", "--save-every", "--keep-states", "--eval-blocks", "--seed", "--threads",
)  # fmt: skip
PLAN_NUMBERS = ("--memory-gb", "--gpus", "--tokens", "--prompt-tokens", "--max-tokens", "--n", "--batch-size")
OTHER_NUMBERS = {
    "evaluate": ("--limit", "--batch-tokens", "--seed", "--threads"),
    "compare": ("--confidence", "--seed"),
    "corpus-stats": ("--sample", "--alpha", "--seed", "--threads"),
    "tokenizer": ("--vocab-size",),
}
PREPARE_NUMBERS = ("--test", "--seeds", "--seed")


@given(option=st.sampled_from(GENERATE_NUMBERS), value=NUMBERS)
@fuzz(60)
def test_numbers_of_generate(
    cdgen_command: Command, model: Path, prompts: Path, tmp_path: Path, option: str, value: str
) -> None:
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    options = {"--max-tokens": "3", "--n": "1"} | {option: value}
    if option == "--min-p":
        options["--contrast-strength"] = "1"
    argv = [f"{name}={value}" for name, value in options.items() if "\0" not in value]
    common = ("--good", model, "--bad", "dropout:0.5", "--seeds", prompts, "--out", out, "--quiet")
    before = files_below(prompts.parent)
    assert_answer(*cdgen_command("generate", *common, *argv))
    assert files_below(prompts.parent) == before
    assert not list(out.glob(".cdgen-[0-9]*"))


@given(option=st.sampled_from(PLAN_NUMBERS), value=NUMBERS)
@fuzz(20)
def test_numbers_of_plan(cdgen_command: Command, model: Path, option: str, value: str) -> None:
    assert_answer(*cdgen_command("plan", "--good", model, "--bad", model, "--gpu", "h100", f"{option}={value}"))


@given(option=st.sampled_from(PREPARE_NUMBERS), value=NUMBERS)
@fuzz(15)
def test_numbers_of_prepare(cdgen_command: Command, prompts: Path, tmp_path: Path, option: str, value: str) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    argv = (f"{prompts},lines=1", "--out", tmp_path / "out", "--quiet")
    assert_answer(*cdgen_command("prepare", *argv, f"{option}={value}"))


@given(option=st.sampled_from(TRAIN_NUMBERS), value=NUMBERS)
@fuzz(25)
def test_numbers_of_train(
    cdgen_command: Command, training: dict[str, Path], tmp_path: Path, option: str, value: str
) -> None:
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    name = option.removeprefix("--").replace("-", "_")
    assert_answer(*train(cdgen_command, training, tmp_path / "out", **{name: value}))


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, cdgen_command: Command, model: Path, training: dict[str, Path]
) -> Path:
    """Return the results of an evaluation of a model under two names."""
    out = tmp_path_factory.mktemp("results") / "out"
    models = (f"one={model}", f"two={model}")
    argv = (*models, "--tasks", f"perplexity={training['--corpus']}", "--limit", 5, "--quiet", "--out", out)
    code, output = cdgen_command("evaluate", *argv)
    assert code == 0, output
    return out


@pytest.mark.parametrize("command", OTHER_NUMBERS)
@given(data=st.data(), value=NUMBERS)
@fuzz(12)
def test_numbers_of_other_commands(
    cdgen_command: Command,
    model: Path,
    training: dict[str, Path],
    results: Path,
    tmp_path: Path,
    command: str,
    data: st.DataObject,
    value: str,
) -> None:
    text, out = training["--corpus"], tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    argv = {
        "evaluate": (model, "--tasks", f"perplexity={text}", "--limit=3", "--quiet", "--out", out),
        "compare": (results, "--baseline", "one", "--resamples=20"),
        "corpus-stats": (text, "--good", model, "--sample=3", "--quiet"),
        "tokenizer": (text, "--quiet", "--out", out),
    }
    option = data.draw(st.sampled_from(OTHER_NUMBERS[command]))
    code, output = cdgen_command(command, *argv[command], f"{option}={value}")
    if code:  # otherwise compare and corpus-stats print tables
        assert_answer(code, output)
