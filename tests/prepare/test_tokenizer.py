"""Trained tokenizers: exact round trips, reproducible bytes, and folders that are complete or untouched."""

import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.prepare import tokenizer as module
from cdgen.prepare.prepared import TrainedTokenizer
from cdgen.prepare.tokenizer import SPECIAL_TOKENS, train_tokenizer
from tests.conftest import CommandLine
from tests.helpers.prepared import contents

TEXTS = ["The quick brown fox jumps over the lazy dog.", "Þá mælti Njáll: </s> æøå.", "fox fox\n\n  fox's 2 dogs"] * 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    pq.write_table(pa.table({"text": TEXTS}), folder / "train.parquet")
    pq.write_table(pa.table({"text": ["zebra zebra zebra"] * 100}), folder / "test.parquet")
    return folder


@pytest.fixture(scope="module")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tokenizer") / "out"
    assert train_tokenizer(corpus, out, vocab_size=310) == TrainedTokenizer(out, 310, written=True)
    return out


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(folder)


def test_transformers_loads_the_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 310
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 2)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == list(SPECIAL_TOKENS)
    ids = tokenizer("The fox")["input_ids"]
    assert ids[0] == 0 and ids.count(0) == 1 and 1 not in ids, "<s> is put in front, and no </s> after"
    assert tokenizer("The fox", add_special_tokens=False)["input_ids"] == ids[1:]
    batch = tokenizer(["The fox", "fox"], padding=True)
    assert batch["input_ids"][1][-1] == 2 and batch["attention_mask"][1][-1] == 0
    words = {tokenizer.decode([token]) for token in range(310)}
    assert " fox" in words and not any("zeb" in word for word in words), (
        "the tokenizer must be trained on the train split alone"
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(st.text(), st.sampled_from([*SPECIAL_TOKENS, " ", "  ", "\n", "\r\n", "'s", " .", "fox"]))))
def test_any_text_is_decoded_exactly(tokenizer: PreTrainedTokenizerFast, pieces: list[str]) -> None:
    text = "".join(pieces)
    for how in ({}, {"split_special_tokens": True}):
        ids = tokenizer(text, add_special_tokens=False, **how)["input_ids"]
        assert tokenizer.decode(ids) == text
    assert not set(ids) & {0, 1, 2}, "special tokens that are split are plain text"


def test_the_same_corpus_gives_the_same_bytes(corpus: Path, folder: Path, tmp_path: Path) -> None:
    """In another process, with another number of threads and another hash seed."""
    code = "import sys; from cdgen.cli import main; sys.exit(main(sys.argv[1:]))"
    argv = ["tokenizer", str(corpus), "--vocab-size", "310", "--out", str(tmp_path / "out")]
    environment = os.environ | {"RAYON_NUM_THREADS": "3", "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}: written; vocabulary of 310 tokens\n"
    assert contents(tmp_path / "out") == contents(folder)


def test_a_small_corpus_gives_fewer_entries(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entries = train_tokenizer(corpus, tmp_path / "out", vocab_size=5000).vocab_size
    assert 259 < entries < 1000 and len(AutoTokenizer.from_pretrained(tmp_path / "out")) == entries
    assert f"train.parquet: gives {entries} entries, not 5000" in caplog.text


def test_a_rerun_does_nothing_and_another_tokenizer_is_refused(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def run(*extra: str) -> tuple[int, str]:
        code = main(["tokenizer", str(corpus), "--out", str(out), "--vocab-size", "300", *extra])
        return code, "".join(capsys.readouterr())

    assert run() == (0, f"{out}: written; vocabulary of 300 tokens\n")
    before, times = contents(out), {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run() == (0, f"{out}: already complete, nothing to do; vocabulary of 300 tokens\n")
    assert run("--quiet") == (0, "")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times
    (out / "tokenizer.json").unlink()
    assert run("--quiet") == (0, "") and contents(out) == before
    (out / "tokenizer.json").write_text("{}")
    code, printed = run()
    assert code == 1 and "tokenizer.json: is truncated or altered" in printed
    code, printed = run("--vocab-size", "301")
    assert code == 2 and "holds a tokenizer of another corpus, vocabulary size or tokenizers version" in printed
    assert run("--vocab-size", "301", "--overwrite") == (0, f"{out}: written; vocabulary of 301 tokens\n")
    assert set(contents(out)) == set(before)


def test_mistakes(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.jsonl.gz").write_bytes(gzip.compress(b'{"text": " \\n"}\n{"text": null}\n'))
    pq.write_table(pa.table({"text": [None, ""]}), tmp_path / "null.parquet")
    (tmp_path / "late.jsonl").write_text('{"text": "a"}\n{"text": 5}\n')
    (tmp_path / "bytes.txt").write_bytes(b"fish \xff")
    (tmp_path / "other").mkdir()
    for name, size, reason in (
        (corpus, 258, "vocab_size = 258: must be 259 to 4194304"),
        (corpus, 10**12, "vocab_size = 1000000000000: must be 259 to"),
        (corpus, 300.5, "vocab_size = 300.5: must be a whole number"),
        (tmp_path / "none", 300, "none: no such file"),
        (tmp_path / "other", 300, r"other: holds no train\.parquet; prepare a corpus first"),
        (tmp_path / "empty.jsonl", 300, r"empty\.jsonl: holds no text"),
        (tmp_path / "empty.txt", 300, r"empty\.txt: holds no text"),
        (tmp_path / "blank.jsonl.gz", 300, r"blank\.jsonl\.gz: holds no text"),
        (tmp_path / "null.parquet", 300, r"null\.parquet: holds no text"),
        (tmp_path / "late.jsonl", 300, r"late\.jsonl: line 2: field 'text' is not text but int"),
        (tmp_path / "bytes.txt", 300, r"bytes\.txt: byte 5 is not UTF-8"),
    ):
        with pytest.raises(InputError, match=reason):
            train_tokenizer(name, tmp_path / "out", vocab_size=size)
        assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="overwrite = 'no': must be True or False"):
        train_tokenizer(corpus, tmp_path / "out", vocab_size=300, overwrite="no")
    (tmp_path / "other" / "tokenizer.json").write_text("mine")
    with pytest.raises(CorpusError, match=r"other/tokenizer\.json: is in the way, and no manifest lists it"):
        train_tokenizer(corpus, tmp_path / "other", vocab_size=300, overwrite=True)
    assert (tmp_path / "other" / "tokenizer.json").read_text() == "mine"


def test_full_disk(cdgen_command: CommandLine, corpus: Path, tmp_path: Path) -> None:
    argv = ["tokenizer", corpus, "--vocab-size", 300, "--out", tmp_path / "out", "--quiet"]
    code, output = cdgen_command(*argv, limit=6000)
    assert code == 1 and output == f"cdgen: error: {tmp_path / 'out'}: cannot be written: File too large\n"
    assert not (tmp_path / "out").exists()
    assert cdgen_command(*argv) == (0, "")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["entries"] == 300


@pytest.mark.slow
def test_the_corpus_is_never_in_memory_whole(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"")
    with pq.ParquetWriter(tmp_path / "train.parquet", pa.schema({"text": pa.string()})) as writer:
        for number in range(30):
            writer.write_table(pa.table({"text": [f"{number} {other}" + " fish" * 2000 for other in range(100)]}))
    tracemalloc.start()
    train_tokenizer(tmp_path, tmp_path / "out", vocab_size=259)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6, "of 30 MB of text"


@pytest.mark.parametrize("character", ["ab", " "])
def test_a_huge_word_is_cut_before_training(tmp_path: Path, character: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to train on the whole word would grow with the square of its length."""
    text = "one fish\n\n two  " + character * 12_000 + " three" * 3000
    pieces = list(module._without_long_runs(text))
    assert "".join(pieces) == text and len(pieces) > 2 and pieces[-1].endswith(" three" * 3000)
    assert max(len(run) for piece in pieces for run in re.findall(r"\S+|\s+", piece)) == 5000
    assert list(module._without_long_runs("fish " * 5000)) == ["fish " * 5000]
    for offset in range(0, 5003, 17):  # wherever the windows of the quick check lie
        shifted = " x" * offset + character * 5001 + " end"
        assert len(list(module._without_long_runs(shifted))) > 1, offset
    (tmp_path / "a.txt").write_text(text)
    assert train_tokenizer(str(tmp_path / "a.txt"), tmp_path / "out", vocab_size=270).vocab_size == 270
    monkeypatch.setattr(module, "_LONGEST_RUN", 1)  # no pairs are left to merge
    (tmp_path / "b.txt").write_text("ab" * 100)
    assert train_tokenizer(tmp_path / "b.txt", tmp_path / "other", vocab_size=270).vocab_size == 259


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": ["some text"]}), tmp_path / "train.parquet")
    with pytest.raises(InputError, match="corpus = '': is empty; name a folder or file, or"):
        train_tokenizer("", tmp_path / "tokenizer")
