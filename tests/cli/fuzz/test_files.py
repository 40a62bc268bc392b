"""Damaged files of models, tokenizers, corpora and runs, and odd seeds files; see :mod:`tests.helpers.hostile`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.hostile import VALUES, Command, assert_answer, damaged_json, files_below, fuzz, train

pytestmark = pytest.mark.slow


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
