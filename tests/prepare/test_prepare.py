"""Prepared corpora: splits, duplicates, budgets, errors, progress, and bounded memory."""

import gzip
import io
import re
import tracemalloc
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.prepare import build, index
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.prepared import Split
from cdgen.prepare.sources import Source
from cdgen.prepare.tokenizer import train_tokenizer
from cdgen.storage.progress import Bar, Lines, Silent
from tests.helpers.prepared import SPLITS, contents, fish, jsonl, manifest_of, split_of, texts

# ------------------------------------------------------------------------------------------------ splits


def test_splits_are_disjoint_and_have_the_requested_shares(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", fish(6000))
    prepared = prepare_corpus([Source("a", path)], tmp_path / "out", test=0.1, seeds=0.04)
    found, manifest = split_of(tmp_path / "out"), manifest_of(tmp_path / "out")
    assert prepared.written and set(found) == set(fish(6000))
    for split, share in (("test", 0.1), ("seeds", 0.04)):
        count = list(found.values()).count(split)
        assert (
            abs(count - 6000 * share) < 5 * (6000 * share * (1 - share)) ** 0.5
        )  # five standard deviations of a binomial
        assert manifest["counts"][split] == manifest["sources"][0][split] == {
            "documents": count,
            "words": sum(len(text.split()) for text in texts(tmp_path / "out", split)),
            "bytes": sum(len(text.encode()) for text in texts(tmp_path / "out", split)),
        }  # fmt: skip
        assert getattr(prepared, split) == Split(tmp_path / "out" / f"{split}.parquet", **manifest["counts"][split])
    rows = pq.read_table(tmp_path / "out" / "train.parquet")
    assert rows.column_names == ["id", "source", "text"] and set(rows["source"].to_pylist()) == {"a"}
    first = rows.to_pylist()[0]
    assert first["id"] == f"a/a.jsonl:{fish(6000).index(first['text']) + 1}"
    prepare_corpus([Source("a", path)], tmp_path / "other", test=0.1, seeds=0.04, seed=7)
    moved = sum(found[text] != split for text, split in split_of(tmp_path / "other").items())
    assert 0.15 < moved / 6000 < 0.4  # expected: 0.25 = 2 * (0.1 * 0.9 + 0.04 * 0.96) minus moves between the two


def test_a_larger_share_moves_no_document_of_the_other_split(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", fish(1000))
    for name, shares in (("small", (0.1, 0.1)), ("more", (0.3, 0.1)), ("none", (0.3, 0))):
        prepare_corpus([Source("a", path)], tmp_path / name, test=shares[0], seeds=shares[1])
    small, more, none = (split_of(tmp_path / name) for name in ("small", "more", "none"))
    assert {text for text in small if small[text] == "seeds"} == {text for text in more if more[text] == "seeds"}
    assert {text for text in small if small[text] == "test"} < {text for text in more if more[text] == "test"}
    assert {text for text in more if more[text] == "test"} == {text for text in none if none[text] == "test"}
    assert not (tmp_path / "none" / "seeds.parquet").exists()


def test_the_order_of_sources_changes_nothing_and_another_source_moves_nothing(tmp_path: Path) -> None:
    sources = [
        Source("b", jsonl(tmp_path / "b.jsonl", fish(300)), words=500),
        Source("a", jsonl(tmp_path / "a.jsonl", fish(300, 200)), weight=1),
        Source("c", jsonl(tmp_path / "c.jsonl", fish(300, 400)), weight=2),
    ]
    made = []
    for number, order in enumerate(permutations(sources)):
        prepare_corpus(order, tmp_path / str(number), test=0.2, seeds=0.2)
        made.append(contents(tmp_path / str(number)))
    assert all(one == made[0] for one in made)
    one = Source("m", sources[0].paths)
    prepare_corpus([one], tmp_path / "one", test=0.2, seeds=0.2)
    prepare_corpus([one, *sources[1:]], tmp_path / "more", test=0.2, seeds=0.2)
    before, after = split_of(tmp_path / "one"), split_of(tmp_path / "more")
    assert len(set(before) & set(after)) == 300 and all(after[text] == before[text] for text in before)


def test_duplicates_are_left_out_and_counted(tmp_path: Path) -> None:
    """The first of equal texts is kept, by source name, file and position; space around a text is ignored."""
    (tmp_path / "d").mkdir()
    jsonl(tmp_path / "d" / "2.jsonl", ["Blue fish.", "One fish.", "Red fish."])
    jsonl(tmp_path / "d" / "1.jsonl", ["One fish.", " \nOne fish. ", "", " ", "Two fish."])
    other = jsonl(tmp_path / "x.jsonl", ["Two fish.", "one fish."])
    sources = [Source("z", other), Source("a", str(tmp_path / "d" / "*.jsonl"))]
    prepared = prepare_corpus(sources, tmp_path / "out", test=0, seeds=0)
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("a/1.jsonl:1", "a", "One fish."),
        ("a/1.jsonl:5", "a", "Two fish."),
        ("a/2.jsonl:1", "a", "Blue fish."),
        ("a/2.jsonl:3", "a", "Red fish."),
        ("z/x.jsonl:2", "z", "one fish."),
    ]
    assert [(s["duplicates"], s["empty"]) for s in manifest_of(tmp_path / "out")["sources"]] == [(2, 2), (1, 0)]
    assert (prepared.duplicates, prepared.empty, prepared.over_budget) == (3, 2, 0)
    assert prepared.train.documents == 5 and (prepared.test, prepared.seeds) == (None, None)


# ------------------------------------------------------------------------------------------------ budgets


def test_a_budget_is_kept_within_one_document(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", fish(500))
    kept = []
    for words in (200, 900.5):
        prepared = prepare_corpus([Source("a", path, words=words)], tmp_path / str(words), test=0.2, seeds=0.2)
        found = split_of(tmp_path / str(words))
        total = sum(len(text.split()) for text in found)
        assert words - 8 < total <= words
        assert prepared.over_budget == 500 - len(found)
        kept.append(found)
    assert kept[0].items() <= kept[1].items()
    places = [fish(500).index(text) for text in kept[0]]
    assert 150 < sum(places) / len(places) < 350  # from the whole source, not only from its start
    path = jsonl(tmp_path / "three.jsonl", fish(500) * 3)
    prepare_corpus([Source("a", path, words=200)], tmp_path / "three", test=0.2, seeds=0.2)
    assert split_of(tmp_path / "three") == kept[0], "duplicates must not use up the budget"


def test_weights_are_proportions_of_words(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = [
        Source("a", jsonl(tmp_path / "a.jsonl", fish(100)), weight=1),
        Source("b", jsonl(tmp_path / "b.jsonl", fish(700, 1000)), weight=2.5),
        Source("c", jsonl(tmp_path / "c.jsonl", fish(100, 2000)), words=1e6),
    ]
    prepare_corpus(sources, tmp_path / "out", test=0.1, seeds=0.1)
    a, b, c = (sum(about[split]["words"] for split in SPLITS) for about in manifest_of(tmp_path / "out")["sources"])
    assert a == sum(len(text.split()) for text in fish(100)), "the scarcest source gives all its words"
    assert 2.5 * a - 8 < b <= 2.5 * a
    assert caplog.messages == [f"source c: has {c} words, fewer than the 1000000 that were requested"]


# ------------------------------------------------------------------------------------------------ mistakes


def parquet_bytes(values: list[str]) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": values}), buffer)
    return buffer.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "name, data, how, reason",
    [
        ("a.txt", b"fine\nnot \xff fine", "", "a.txt: byte 9 is not UTF-8; convert"),
        ("a.txt.gz", gzip.compress(b"fish" * 99, mtime=0)[:-9], "", "a.txt.gz: damaged gzip file"),
        ("a.jsonl.zst", b"not zstd", "", "a.jsonl.zst: damaged zstd file"),
        ("a.parquet", parquet_bytes(["fish"])[:-9], "", "a.parquet: not a Parquet file"),
        ("a.parquet", parquet_bytes(["fish"]), ",field=body", "no field 'body'; it has text; choose one with field="),
        ("a.txt", b"", ",lines=1", "a.txt: 0 empty, 0 duplicates, 0 over the budget"),
        ("a.txt", b"\n \n", ",lines=1", "a.txt: 2 empty, 0 duplicates"),
        ("a.txt", b"one fish two fish", ",words=3", "a.txt: 0 empty, 0 duplicates, 1 over the budget"),
        ("a.txt", b"fish", "", "is empty: none of 1 documents falls into a share of 0."),
        ("a.txt", b"fish", ",by=record", "a.txt: a text file has no records"),
        ("a.txt", b"fish", ",field=body", "a.txt: a text file has no fields; leave out field=body"),
        ("a.md", b"fish", ",by=blank,field=body", "a.md: a text file has no fields; leave out field=body"),
        ("a.jsonl", b'{"text": "fish"}', ",by=blank", "each of its records is a document; blank is for text files"),
        ("b.txt", b"fish", "", "a.txt: no such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, how: str, reason: str
) -> None:
    (tmp_path / name).write_bytes(data)
    asked = tmp_path / (name if name[0] == "a" else "a.txt")
    code = main(["prepare", f"{asked}{how}", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and printed.err.count("\n") == 1, printed
    assert printed.err.startswith("cdgen: error: ") and reason in printed.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_mistakes(tmp_path: Path) -> None:
    source = Source("a", jsonl(tmp_path / "a.jsonl", fish(100)))
    for sources, options, reason in (
        ([], {}, "no sources given"),
        (3, {}, "sources: give a Source, a string or a path, or a list of them, not int"),
        ([source, 3], {}, "or a list of them, not int"),
        ([source], {"seed": 1.5}, "seed = 1.5: must be a whole number"),
        ([source], {"overwrite": "no"}, "overwrite = 'no': must be True or False"),
        ([source], {"test": "0.05"}, "test = '0.05': must be a number"),
        ([source], {"test": float("nan")}, "test = nan: must be 0 to 1"),
        ([source, source], {}, "source a: is given twice; name each one"),
        ([source], {"test": 1.0}, "test = 1.0, seeds = 0.05: nothing is left to train on"),
        ([source], {"seeds": -0.1}, "seeds = -0.1: must be 0 to 1"),
        ([source], {"test": 0.5, "seeds": 0.5}, "nothing is left to train on"),
    ):
        with pytest.raises(InputError, match=reason):
            prepare_corpus(sources, tmp_path / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.parquet").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(CorpusError, match=r"full/train\.parquet: is in the way, and no manifest lists it; move it"):
            prepare_corpus([source], tmp_path / "full", overwrite=overwrite)
    (tmp_path / "full" / "manifest.json").write_text('{"shards": []}')
    with pytest.raises(CorpusError, match="is not a manifest of a prepared corpus"):
        prepare_corpus([source], tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "train.parquet").read_text() == "mine"


def test_a_source_may_be_given_as_a_string_or_path(tmp_path: Path) -> None:
    """A string is not taken for a list of letters."""
    path = jsonl(tmp_path / "a.jsonl", fish(100))
    first = prepare_corpus([Source("a", path)], tmp_path / "out")
    for sources in (path, Path(path), Source("a", path), [path], (f"a={path}",)):
        assert prepare_corpus(sources, tmp_path / "out", seed=np.int64(42)) == replace(first, written=False)


def test_words_of_huge_texts_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "_PIECE", 5)
    for text in ("", "fish", "one fish two fish", "a  b\u2003c\x1cd \n" * 7, "longer-than-a-piece x", " " * 12):
        assert index.count_words(text) == len(text.split())


def test_a_folder_of_another_kind_is_refused(tmp_path: Path) -> None:
    source, out = Source("a", jsonl(tmp_path / "a.jsonl", fish(200))), tmp_path / "out"
    prepare_corpus([source], out)
    train_tokenizer(out, tmp_path / "tokenizer", vocab_size=300)
    before = contents(out), contents(tmp_path / "tokenizer")
    for overwrite in (False, True):
        with pytest.raises(CorpusError, match="describes a tokenizer, not a prepared corpus; choose another folder"):
            prepare_corpus([source], tmp_path / "tokenizer", overwrite=overwrite)
        with pytest.raises(CorpusError, match="describes a prepared corpus, not a tokenizer; choose another folder"):
            train_tokenizer(out, out, vocab_size=300, overwrite=overwrite)
    assert (contents(out), contents(tmp_path / "tokenizer")) == before


# ------------------------------------------------------------------------------------------------ progress and memory


def test_progress(tmp_path: Path) -> None:
    source, stream = Source("a", jsonl(tmp_path / "a.jsonl", fish(100))), io.StringIO()
    prepare_corpus([source], tmp_path / "out", progress=Lines(stream, every=0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 200 and re.fullmatch(r"0 MB read, \d+ MB/s", lines[99])
    assert re.fullmatch(r"0 MB written, \d+ MB/s, 0:00:00 left", lines[198])
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = Bar(console)
    prepare_corpus([source], tmp_path / "other", progress=bar)
    bar.close()
    assert "text written" in console.file.getvalue()


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 24 MB of text, in row groups of 1 MB, neither Python nor Arrow holds more than half at any time."""
    monkeypatch.setattr(build, "_GROUP", 1 << 20)
    path = tmp_path / "a.txt"
    with open(path, "w") as file:
        for number in range(3000):
            file.write(f"{number}" + " fish" * 1600 + "\n\n")
    arrow = [0]

    class Watch(Silent):
        def advance(self, units: int) -> None:
            arrow[0] = max(arrow[0], pa.total_allocated_bytes() - start)

    start = pa.total_allocated_bytes()
    tracemalloc.start()
    prepare_corpus([Source("a", str(path), by="blank")], tmp_path / "out", progress=Watch())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(split_of(tmp_path / "out")) == 3000 and peak < 12e6 and arrow[0] < 12e6
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups > 10
