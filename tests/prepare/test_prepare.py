"""Prepared corpora: where every document goes, what is counted, what is refused, in bounded memory."""

import gzip
import io
import re
import tracemalloc
from itertools import permutations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.prepare import build
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.sources import Source
from cdgen.storage.byte_progress import Bar, Lines
from tests.helpers.prepared import SPLITS, contents, fish, jsonl, split_of, texts

# ------------------------------------------------------------------------------------------------ splits


def test_splits_are_disjoint_and_of_the_shares_asked_for(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", fish(6000))
    manifest, written = prepare_corpus([Source("a", path)], tmp_path / "out", test=0.1, seeds=0.04)
    found = split_of(tmp_path / "out")
    assert written and set(found) == set(fish(6000))
    for split, share in (("test", 0.1), ("seeds", 0.04)):
        count = list(found.values()).count(split)
        assert abs(count - 6000 * share) < 5 * (6000 * share * (1 - share)) ** 0.5  # a binomial's five deviations
        assert manifest["counts"][split] == manifest["sources"][0][split] == {
            "documents": count,
            "words": sum(len(text.split()) for text in texts(tmp_path / "out", split)),
            "bytes": sum(len(text.encode()) for text in texts(tmp_path / "out", split)),
        }  # fmt: skip
    rows = pq.read_table(tmp_path / "out" / "train.parquet")
    assert rows.column_names == ["id", "source", "text"] and set(rows["source"].to_pylist()) == {"a"}
    first = rows.to_pylist()[0]
    assert first["id"] == f"a/a.jsonl:{fish(6000).index(first['text']) + 1}"
    prepare_corpus([Source("a", path)], tmp_path / "other", test=0.1, seeds=0.04, seed=7)
    moved = sum(found[text] != split for text, split in split_of(tmp_path / "other").items())
    assert 0.15 < moved / 6000 < 0.4  # 2 * (0.1 * 0.9 + 0.04 * 0.96) less what moves between the two: 0.25


def test_a_larger_share_moves_no_document_of_the_other_split(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", fish(1000))
    for name, shares in (("small", (0.1, 0.1)), ("more", (0.3, 0.1)), ("none", (0.3, 0))):
        prepare_corpus([Source("a", path)], tmp_path / name, test=shares[0], seeds=shares[1])
    small, more, none = (split_of(tmp_path / name) for name in ("small", "more", "none"))
    assert {text for text in small if small[text] == "seeds"} == {text for text in more if more[text] == "seeds"}
    assert {text for text in small if small[text] == "test"} < {text for text in more if more[text] == "test"}
    assert {text for text in more if more[text] == "test"} == {text for text in none if none[text] == "test"}
    assert not (tmp_path / "none" / "seeds.parquet").exists()


def test_the_order_of_sources_changes_nothing_and_another_source_moves_nothing(tmp_path):
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


def test_duplicates_are_left_out_and_counted(tmp_path):
    """The first of equal texts stays: by source name, then file, then place; space around a text is not part of it."""
    (tmp_path / "d").mkdir()
    jsonl(tmp_path / "d" / "2.jsonl", ["Blue fish.", "One fish.", "Red fish."])
    jsonl(tmp_path / "d" / "1.jsonl", ["One fish.", " \nOne fish. ", "", " ", "Two fish."])
    other = jsonl(tmp_path / "x.jsonl", ["Two fish.", "one fish."])
    sources = [Source("z", other), Source("a", str(tmp_path / "d" / "*.jsonl"))]
    manifest, _ = prepare_corpus(sources, tmp_path / "out", test=0, seeds=0)
    rows = pq.read_table(tmp_path / "out" / "train.parquet").to_pylist()
    assert [tuple(row.values()) for row in rows] == [
        ("a/1.jsonl:1", "a", "One fish."),
        ("a/1.jsonl:5", "a", "Two fish."),
        ("a/2.jsonl:1", "a", "Blue fish."),
        ("a/2.jsonl:3", "a", "Red fish."),
        ("z/x.jsonl:2", "z", "one fish."),
    ]
    assert [(s["duplicates"], s["empty"]) for s in manifest["sources"]] == [(2, 2), (1, 0)]
    assert manifest["counts"]["duplicates"] == 3


# ------------------------------------------------------------------------------------------------ budgets


def test_a_budget_is_kept_within_one_document(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", fish(500))
    kept = []
    for words in (200, 900.5):
        manifest, _ = prepare_corpus([Source("a", path, words=words)], tmp_path / str(words), test=0.2, seeds=0.2)
        found = split_of(tmp_path / str(words))
        total = sum(len(text.split()) for text in found)
        assert words - 8 < total <= words
        assert manifest["sources"][0]["over_budget"] == 500 - len(found)
        kept.append(found)
    assert kept[0].items() <= kept[1].items()
    places = [fish(500).index(text) for text in kept[0]]
    assert 150 < sum(places) / len(places) < 350  # from all over the source, not from its start
    path = jsonl(tmp_path / "three.jsonl", fish(500) * 3)
    prepare_corpus([Source("a", path, words=200)], tmp_path / "three", test=0.2, seeds=0.2)
    assert split_of(tmp_path / "three") == kept[0], "a duplicate takes no words from the budget"


def test_weights_are_proportions_of_words(tmp_path, caplog):
    sources = [
        Source("a", jsonl(tmp_path / "a.jsonl", fish(100)), weight=1),
        Source("b", jsonl(tmp_path / "b.jsonl", fish(700, 1000)), weight=2.5),
        Source("c", jsonl(tmp_path / "c.jsonl", fish(100, 2000)), words=1e6),
    ]
    manifest, _ = prepare_corpus(sources, tmp_path / "out", test=0.1, seeds=0.1)
    a, b, c = (sum(about[split]["words"] for split in SPLITS) for about in manifest["sources"])
    assert a == sum(len(text.split()) for text in fish(100)), "the scarcest gives all it has"
    assert 2.5 * a - 8 < b <= 2.5 * a
    assert caplog.messages == [f"source c: has {c} words, fewer than the 1000000 asked for"]


# ------------------------------------------------------------------------------------------------ mistakes


def parquet_bytes(values):
    buffer = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": values}), buffer)
    return buffer.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "name, data, how, reason",
    [
        ("a.txt", b"fine\nnot \xff fine", "", "a.txt: byte 9 is not UTF-8; convert"),
        ("a.txt.gz", gzip.compress(b"fish" * 99)[:-9], "", "a.txt.gz: damaged gzip file"),
        ("a.jsonl.zst", b"not zstd", "", "a.jsonl.zst: damaged zstd file"),
        ("a.parquet", parquet_bytes(["fish"])[:-9], "", "a.parquet: not a Parquet file"),
        ("a.parquet", parquet_bytes(["fish"]), ",field=body", "no field 'body'; it has text; choose with field=NAME"),
        ("a.txt", b"", ",lines=1", "source a: gives no document: 0 empty, 0 duplicates, 0 over the budget; of"),
        ("a.txt", b"\n \n", ",lines=1", "source a: gives no document: 2 empty"),
        ("a.txt", b"one fish two fish", ",words=3", "source a: gives no document: 0 empty, 0 duplicates, 1 over"),
        ("a.txt", b"fish", "", "holds no document; of 1 documents none falls into a share of 0."),
        ("a.txt", b"fish", ",by=record", "a.txt: a text has no records"),
        ("a.jsonl", b'{"text": "fish"}', ",by=blank", "a.jsonl: its documents are its records; blank is for text"),
        ("b.txt", b"fish", "", "a.txt: no such file"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(tmp_path, capsys, name, data, how, reason):
    (tmp_path / name).write_bytes(data)
    asked = tmp_path / (name if name[0] == "a" else "a.txt")
    code = main(["prepare", f"{asked}{how}", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code == 2 and printed.out == "" and printed.err.count("\n") == 1, printed
    assert printed.err.startswith("cdgen: error: ") and reason in printed.err
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_mistakes(tmp_path):
    source = Source("a", jsonl(tmp_path / "a.jsonl", fish(100)))
    for sources, options, reason in (
        ([], {}, "no sources given"),
        ([source, source], {}, "source a: is given twice; name them"),
        ([source], {"test": 1.0}, "test = 1.0: must be"),
        ([source], {"seeds": -0.1}, "seeds = -0.1: must be"),
        ([source], {"test": 0.5, "seeds": 0.5}, "nothing is left to train on"),
    ):
        with pytest.raises(InputError, match=reason):
            prepare_corpus(sources, tmp_path / "out", **options)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "train.parquet").write_text("mine")
    with pytest.raises(CorpusError, match=r"holds train\.parquet but no manifest\.json"):
        prepare_corpus([source], tmp_path / "full")
    (tmp_path / "full" / "manifest.json").write_text('{"shards": []}')
    with pytest.raises(CorpusError, match="is not of a prepared corpus"):
        prepare_corpus([source], tmp_path / "full", overwrite=True)
    assert (tmp_path / "full" / "train.parquet").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ progress and memory


def test_progress(tmp_path):
    source, stream = Source("a", jsonl(tmp_path / "a.jsonl", fish(100))), io.StringIO()
    prepare_corpus([source], tmp_path / "out", progress=Lines(stream, every=0))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 200 and re.fullmatch(r"0 MB read, \d+ MB/s", lines[99])
    assert re.fullmatch(r"0 MB written, \d+ MB/s, 0:00 left", lines[199])
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = Bar(console)
    prepare_corpus([source], tmp_path / "other", progress=bar)
    bar.close()
    assert "text written" in console.file.getvalue()


def test_memory_is_bounded(tmp_path, monkeypatch):
    """24 MB of text, row groups of 1 MB: Python holds less than half of it at any time, and Arrow too."""
    monkeypatch.setattr(build, "_GROUP", 1 << 20)
    path = tmp_path / "a.txt"
    with open(path, "w") as file:
        for number in range(3000):
            file.write(f"{number}" + " fish" * 1600 + "\n\n")
    arrow = [0]

    class Progress(build.Progress):
        def advance(self, count):
            arrow[0] = max(arrow[0], pa.total_allocated_bytes() - start)

    start = pa.total_allocated_bytes()
    tracemalloc.start()
    prepare_corpus([Source("a", str(path), by="blank")], tmp_path / "out", progress=Progress())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(split_of(tmp_path / "out")) == 3000 and peak < 12e6 and arrow[0] < 12e6
    assert pq.ParquetFile(tmp_path / "out" / "train.parquet").num_row_groups > 10
