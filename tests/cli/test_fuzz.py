"""Hostile input from hypothesis: numbers on the command line, damaged files of models, tokenizers, corpora and runs,
and odd seeds files.

Whatever the input, a command ends with an exit code that means something, an error is one line, and no other file
changes. Each example runs in a process of its own, so that a crash is seen as well. The examples are the same in every
run; `CDGEN_FUZZ=1000` tries that many random ones per test.
"""

import copy
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

EXAMPLES = int(os.environ.get("CDGEN_FUZZ", "0"))
pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str]]


def fuzz(examples: int) -> Callable[[Any], Any]:
    """Return the settings of a test that tries `examples` examples."""
    unchecked = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=unchecked,
    )


def files_below(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file below a folder, by path."""
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def assert_answer(code: int, output: str) -> None:
    """Check that a command's exit code and messages are ones that a user can act on."""
    assert code in (0, 1, 2, 130), (code, output)
    assert "Traceback" not in output and "--debug" not in output, output
    errors = [line for line in output.splitlines() if line.startswith("cdgen: error: ")]
    assert len(errors) == (code in (1, 2)), output
    others = [line for line in output.splitlines() if not line.startswith("cdgen: ")]
    assert code == 0 or not others, output
    assert all(len(line) < 1200 for line in output.splitlines())
    assert not any(ord(character) < 32 for line in output.splitlines() for character in line), output


# ------------------------------------------------------------------------------------------------ strategies

NUMBERS = st.one_of(
    st.sampled_from(["0", "-1", "1", "-0.0", "nan", "inf", "-inf", "1e-50", "1e-46", "1e39", "-1e39", "1e300", "0.5"]),
    st.sampled_from([str(2**31), str(2**32 + 5), str(2**63), str(-(2**63) - 1), "9" * 400, "1" * 5000, "1_0", "٣", ""]),
    st.sampled_from(["true", "None", "1.0", "0x10", "1,5", " 2", "+3", "1e2", "\x1b[2J", "\ud800", "-"]),
    st.integers().map(str),
    st.floats().map(str),
)

VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8),
        st.sampled_from([0, -1, 1, 2, 10**9, "two", "../x", "/etc/passwd", "\x1b[2J", "\ud800", "foo", math.nan]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=3,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value within a JSON value; only the first two entries of a long list count."""
    found = [path]
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, inner in items[:40] if isinstance(value, dict) else items[:2]:
        found += places(inner, (*path, key))
    return found


@st.composite
def damaged_json(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw a damaged version of a JSON file: another value, a missing one, or damaged bytes."""
    kind = draw(st.sampled_from(["value", "value", "value", "remove", "add", "bytes", "truncate", "replace"]))
    if kind == "truncate":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "replace":
        return draw(
            st.sampled_from([b"", b"{}", b"[]", b"null", b"\0" * 100, b"[" * 10_000, b"\xff\xfe{}", b'{"a": 1'])
        )
    if kind == "bytes":
        at = draw(st.integers(0, len(content) - 1))
        return content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    value = copy.deepcopy(json.loads(content))
    path = draw(st.sampled_from(places(value)[1:]))
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    if kind == "remove":
        del parent[path[-1]]
    elif kind == "add" and isinstance(parent, dict):
        parent[draw(st.text(max_size=6))] = draw(VALUES)
    else:
        parent[path[-1]] = draw(VALUES)
    return json.dumps(value).encode()


# ------------------------------------------------------------------------------------------------ the command line

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


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, bad: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Return a folder with a small model and its tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    bad.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "seeds.txt"
    path.write_text("The quick brown fox\nOnce upon\n")
    return path


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


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, model: Path) -> dict[str, Path]:
    """Return a text, the config of a model, and a tokenizer."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "text.txt").write_text("\n".join(f"{number} foxes jump over {number} dogs." for number in range(60)))
    return {"--corpus": folder / "text.txt", "--tokenizer": model, "--model": model}


def train(command: Command, training: dict[str, Path], out: Path, **options: str) -> tuple[int, str]:
    """Run `cdgen train` for two steps."""
    small = {"steps": "2", "block_size": "16", "batch_size": "4", "warmup_steps": "0", "save_every": "1"}
    argv = [f"--{name.replace('_', '-')}={value}" for name, value in (small | options).items()]
    paths = [part for pair in training.items() for part in pair]
    return command("train", *paths, *argv, "--out", out, "--quiet", ACCELERATE_USE_CPU="true")


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


# ------------------------------------------------------------------------------------------------ damaged files


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "model.safetensors"]
)
@given(data=st.data())
@fuzz(20)
def test_files_of_a_model(
    cdgen_command: Command, model: Path, prompts: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    damaged, out = tmp_path / "damaged", tmp_path / "out"
    for folder in (damaged, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(model, damaged)
    content = (damaged / name).read_bytes()
    if name == "model.safetensors":
        at = data.draw(st.integers(0, 600))  # within the header, a JSON object
        changed = content[:at] + data.draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    else:
        changed = data.draw(damaged_json(content))
    (damaged / name).write_bytes(changed)
    before = files_below(damaged)
    common = ("--good", damaged, "--bad", model, "--seeds", prompts, "--out", out, "--max-tokens", 3, "--quiet")
    assert_answer(*cdgen_command("generate", *common))
    assert files_below(damaged) == before


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, cdgen_command: Command, model: Path, prompts: Path) -> Path:
    """Return the folder of a finished corpus."""
    out = tmp_path_factory.mktemp("corpus") / "out"
    code, output = generate_corpus(cdgen_command, model, prompts, out)
    assert code == 0, output
    return out


def generate_corpus(command: Command, model: Path, prompts: Path, out: Path, *more: str) -> tuple[int, str]:
    sampling = ("--n", 4, "--max-tokens", 3, "--shard-size", 4, "--split-documents")
    return command("generate", "--good", model, "--bad", model, "--seeds", prompts, "--out", out, *sampling, *more)


@given(data=st.data())
@fuzz(40)
def test_a_manifest_of_a_generated_corpus(
    cdgen_command: Command, model: Path, prompts: Path, corpus: Path, tmp_path: Path, data: st.DataObject
) -> None:
    damaged = tmp_path / "out"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(corpus, damaged)
    (damaged / "notes.txt").write_text("mine")
    (tmp_path / "x").write_text("mine")
    (damaged / "_manifest.json").write_bytes(data.draw(damaged_json((corpus / "_manifest.json").read_bytes())))
    more = data.draw(st.sampled_from([(), ("--no-resume",)]))
    shards = {name: digest for name, digest in files_below(damaged).items() if name != "_manifest.json"}
    code, output = generate_corpus(cdgen_command, model, prompts, damaged, "--quiet", *more)
    assert_answer(code, output)
    after = files_below(damaged)
    assert (damaged / "notes.txt").read_text() == (tmp_path / "x").read_text() == "mine"
    assert code == 0 or {name: after.get(name) for name in shards} == shards


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, cdgen_command: Command, training: dict[str, Path]) -> Path:
    """Return a folder with a prepared corpus and a tokenizer."""
    folder = tmp_path_factory.mktemp("prepared")
    for command in ("prepare", "tokenizer"):
        code, output = prepare(cdgen_command, command, training["--corpus"], folder)
        assert code == 0, output
    return folder


def prepare(run: Command, command: str, text: Path, folder: Path, *more: str) -> tuple[int, str]:
    """Run `cdgen prepare` or `cdgen tokenizer`."""
    argv = (f"{text},lines=1",) if command == "prepare" else (folder / "prepare", "--vocab-size", 300)
    return run(command, *argv, "--out", folder / command, "--quiet", *more)


@pytest.mark.parametrize("command", ["prepare", "tokenizer"])
@given(data=st.data())
@fuzz(20)
def test_a_manifest_of_a_prepared_corpus_or_a_tokenizer(
    cdgen_command: Command, training: dict[str, Path], prepared: Path, tmp_path: Path, command: str, data: st.DataObject
) -> None:
    folder = tmp_path / "folder"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(prepared, folder)
    (folder / command / "notes.txt").write_text("mine")
    manifest = folder / command / "manifest.json"
    manifest.write_bytes(data.draw(damaged_json(manifest.read_bytes())))
    again = data.draw(st.sampled_from([(), ("--overwrite",), ("verify",)]))
    if again == ("verify",):
        code, output = cdgen_command("corpus", "verify", folder / "prepare")
        assert code in (0, 1, 2) and "Traceback" not in output and "--debug" not in output, output
    else:
        assert_answer(*prepare(cdgen_command, command, training["--corpus"], folder, *again))
    assert (folder / command / "notes.txt").read_text() == "mine"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cdgen_command: Command, training: dict[str, Path]) -> Path:
    """Return the folder of a finished training run."""
    out = tmp_path_factory.mktemp("run") / "out"
    code, output = train(cdgen_command, training, out)
    assert code == 0, output
    return out


@pytest.mark.parametrize("name", ["run.json", "log.jsonl"])
@given(data=st.data())
@fuzz(20)
def test_files_of_a_run(
    cdgen_command: Command, training: dict[str, Path], run: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    damaged = tmp_path / "out"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(run, damaged)
    (damaged / "notes.txt").write_text("mine")
    content = (run / name).read_bytes()
    if name == "log.jsonl":
        first, *rest = content.splitlines(keepends=True)
        content = data.draw(damaged_json(first)) + b"".join(rest)
        content += data.draw(st.sampled_from([b"", b"\0" * 50, b'{"step": 2, "lo', b"\xff\n", b"[]\n", b"3\n"]))
    else:
        content = data.draw(damaged_json(content))
    (damaged / name).write_bytes(content)
    shutil.rmtree(damaged / "step_000002", ignore_errors=data.draw(st.booleans()))
    command = data.draw(st.sampled_from(["train", "models"]))
    if command == "train":
        assert_answer(*train(cdgen_command, training, damaged))
    else:
        code, output = cdgen_command("models", "ls", damaged)
        assert code in (0, 1, 2) and "Traceback" not in output and "--debug" not in output, output
    assert (damaged / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ seeds

RECORDS = st.one_of(
    st.dictionaries(st.sampled_from(["text", "id", "\x1b[2J", "other"]), VALUES, max_size=3).map(
        lambda record: json.dumps(record).encode()
    ),
    st.text(max_size=20).map(lambda text: json.dumps({"text": text}).encode()),
    st.binary(max_size=20),
    st.sampled_from([b'{"text": "a", "text": "b"}', b"[" * 5000, b'{"text": "\\ud800"}', b'{"text": 1e999}', b"\0\0"]),
)


@pytest.mark.parametrize("name", ["seeds.jsonl", "seeds.txt", "seeds.jsonl.gz", "seeds.parquet"])
@given(lines=st.lists(RECORDS, max_size=3), more=st.sampled_from([(), ("--prefix-tokens", 2), ("--chunk-words", 2)]))
@fuzz(15)
def test_seeds_files(
    cdgen_command: Command, model: Path, tmp_path: Path, name: str, lines: list[bytes], more: tuple[Any, ...]
) -> None:
    seeds, out = tmp_path / "seeds", tmp_path / "out"
    for folder in (seeds, out):
        shutil.rmtree(folder, ignore_errors=True)
    seeds.mkdir()
    (seeds / name).write_bytes(b"\n".join(lines))
    before = files_below(seeds)
    options = ("--method", "ancestral", "--max-tokens", 3, "--out", out, "--quiet")
    assert_answer(*cdgen_command("generate", "--good", model, "--seeds", seeds / name, *options, *more))
    assert files_below(seeds) == before
