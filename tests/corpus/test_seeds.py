"""Seeds from every format: names, chunks and prefixes, what is dropped, and which errors are reported."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdgen.corpus.seeds import fingerprint, read_seeds
from cdgen.errors import InputError

TEXTS = ["One fish.", "Two fish, æøå.", "", "Red fish."]


def letters(text: str, name: str) -> list[int]:
    """Stand in for a tokenizer, with one token per character."""
    assert text, name
    return [ord(letter) for letter in text]


def read(*paths: Path, **options: Any) -> tuple[list[tuple[str, str]], int]:
    seeds, dropped = read_seeds(paths, letters, **options)
    return [(seed.id, "".join(map(chr, seed.token_ids))) for seed in seeds], dropped


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    return tmp_path


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.parquet"])
def test_every_format_gives_the_same_seeds(files: Path, name: str) -> None:
    assert read(files / name) == ([(f"{name}:1", TEXTS[0]), (f"{name}:2", TEXTS[1]), (f"{name}:4", TEXTS[3])], 1)


def test_datasets_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": TEXTS, "id": ["w", "x", "y", "z"]})
    data.save_to_disk(tmp_path / "d")
    assert read(tmp_path / "d") == ([("w", TEXTS[0]), ("x", TEXTS[1]), ("z", TEXTS[3])], 1)
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match=r"holds the splits train; give one of them, such as .*train"):
        read(tmp_path / "splits")
    (tmp_path / "plain").mkdir()
    with pytest.raises(InputError, match="not a folder of datasets"):
        read(tmp_path / "plain")


def test_several_files_of_one_name_keep_their_folders(files: Path) -> None:
    (files / "more").mkdir()
    (files / "more" / "a.txt").write_text("Blue fish.")
    found, _ = read(files / "a.txt", files / "more" / "a.txt")
    assert found[-1] == (f"{files}/more/a.txt:1", "Blue fish.") and found[0][0] == f"{files}/a.txt:1"


def test_ids_and_fields_of_records(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"body": "One", "id": 7}\n\n{"body": "Two", "id": "x"}\n{"body": null}\n')
    assert read(path, field="body") == ([("7", "One"), ("x", "Two")], 1)
    with pytest.raises(
        InputError,
        match=r"s\.jsonl: line 1 has no field 'text'; it has body, id; choose one with generate_corpus\(field=NAME\)",
    ):
        read(path)
    pq.write_table(pa.table({"body": ["One"], "id": [7]}), tmp_path / "s.parquet")
    assert read(tmp_path / "s.parquet", field="body") == ([("7", "One")], 0)
    with pytest.raises(InputError, match=r"no field 'text'; it has body, id"):
        read(tmp_path / "s.parquet")


def test_byte_order_mark_and_line_ends(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbfOne\r\nTwo  \r\n\r\n")
    assert read(tmp_path / "s.txt") == ([("s.txt:1", "One"), ("s.txt:2", "Two  ")], 1)
    (tmp_path / "s.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "One"}\r\n')
    assert read(tmp_path / "s.jsonl") == ([("s.jsonl:1", "One")], 0)


def test_prefix_tokens(files: Path) -> None:
    assert read(files / "a.txt", prefix_tokens=3)[0] == [("a.txt:1", "One"), ("a.txt:2", "Two"), ("a.txt:4", "Red")]


def test_seeds_shorter_than_the_prefix(files: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert [len(text) for _, text in read(files / "a.txt", prefix_tokens=10)[0]] == [9, 10, 9]
    assert caplog.messages == [
        "seeds: 1 of 4 texts are left out: 1 empty",
        "2 of 3 seeds have fewer than 10 tokens and are used whole",
    ]
    with pytest.raises(InputError, match=r"prefix_tokens = 99: all 3 seeds are shorter, the longest has 14 tokens"):
        read(files / "a.txt", prefix_tokens=99)


def test_documents_are_cut_into_chunks(tmp_path: Path) -> None:
    """Ten words make chunks of 4 and 6 words; space inside a chunk is kept."""
    words = [f"w{i}" for i in range(10)]
    (tmp_path / "doc.txt").write_text(" ".join(words[:5]) + "\n\n" + " ".join(words[5:]) + "\n")
    (tmp_path / "short.txt").write_text("w w w")
    found, dropped = read(tmp_path / "doc.txt", tmp_path / "short.txt", chunk_words=4)
    assert found == [("doc.txt:1#0", "w0 w1 w2 w3"), ("doc.txt:1#1", "w4\n\nw5 w6 w7 w8 w9")] and dropped == 1
    (tmp_path / "docs.jsonl").write_text(
        json.dumps({"text": " ".join(words), "id": "d"}) + "\n" + json.dumps({"text": "w w"})
    )
    assert read(tmp_path / "docs.jsonl", chunk_words=10, prefix_tokens=2) == ([("d#0", "w0")], 1)


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("s.txt", b"fine\nnot \xff fine", r"s\.txt: byte 9 is not UTF-8"),
        ("s.txt", b"\n \n\t\n", "seeds: none in .*: 3 empty$"),
        ("s.txt", b"", r"seeds: none in .*s\.txt: nothing in it"),
        ("s.jsonl", b'{"text": "a"}\n{"text": \n', r"s\.jsonl: line 2 is not JSON"),
        ("s.jsonl", b'["a"]', "line 1 is not an object"),
        ("s.jsonl", b'{"text": 5}', "line 1: field 'text' is not text but int"),
        ("s.jsonl.gz", b"not gzip", "damaged gzip"),
        ("s.jsonl.gz", gzip.compress(b'{"text": "a"}', mtime=0)[:-6], "damaged gzip"),
        ("s.parquet", b"not parquet", "not a Parquet file"),
        ("s.csv", b"a,b", r"cannot read seeds from a file of this format; use \.txt"),
    ],
)
def test_what_cannot_be_read_is_reported_with_its_place(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_other_mistakes(files: Path) -> None:
    with pytest.raises(InputError, match="no such seeds file"):
        read(files / "none.txt")
    for option in ("prefix_tokens", "chunk_words"):
        with pytest.raises(InputError, match=f"{option} = 0"):
            read(files / "a.txt", **{option: 0})
        with pytest.raises(InputError, match=f"{option} = 1.5: must be a whole number"):
            read(files / "a.txt", **{option: 1.5})


def test_fingerprint_depends_on_names_and_tokens(files: Path) -> None:
    seeds, _ = read_seeds([files / "a.txt"], letters)
    again, _ = read_seeds([files / "a.txt"], letters)
    assert fingerprint(seeds) == fingerprint(again)
    shorter, _ = read_seeds([files / "a.txt"], letters, prefix_tokens=5)
    elsewhere, _ = read_seeds([files / "a.jsonl"], letters)
    assert len({fingerprint(s) for s in (seeds, shorter, elsewhere, seeds[:-1], seeds[::-1])}) == 5


def test_one_path_needs_no_list(files: Path) -> None:
    assert read_seeds(files / "a.txt", letters) == read_seeds([str(files / "a.txt")], letters)
    assert read_seeds(str(files / "a.txt"), letters) == read_seeds([files / "a.txt"], letters)
    with pytest.raises(InputError, match="no files are given"):
        read_seeds([], letters)


# ------------------------------------------------------------------------------------------------ unique names


def test_one_file_is_read_once(files: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt: is given twice"):
        read(files / "a.txt", files / "a.parquet", files / "a.txt")
    (files / "link.txt").symlink_to(files / "a.txt")
    (files / "hard.txt").hardlink_to(files / "a.txt")
    for other in (files / "link.txt", files / "hard.txt", files / ".." / files.name / "a.txt"):
        with pytest.raises(InputError, match=r"a\.txt: and .*\.txt are one file"):
            read(files / "a.txt", other)


def test_ids_that_are_not_unique_are_replaced_by_places(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ids are repeated within a file or in two files, or look like the place of another record."""
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    one.write_text('{"text": "a", "id": 1}\n{"text": "b", "id": "1"}\n{"text": "c", "id": 3}\n{"text": "d", "id": 4}\n')
    two.write_text('{"text": "e", "id": 3}\n\n{"text": "f", "id": "one.jsonl:1"}\n{"text": "g"}\n')
    names = [name for name, _ in read(one, two)[0]]
    assert names == ["one.jsonl:1", "one.jsonl:2", "one.jsonl:3", "4", "two.jsonl:1", "two.jsonl:3", "two.jsonl:4"]
    assert caplog.messages == [
        "seeds: the ids of 5 of 7 records are not unique; they are named FILE:NUMBER, such as one.jsonl:1"
    ]
    chunks = [name for name, _ in read(one, two, chunk_words=1)[0]]
    assert chunks == [f"{name}#0" for name in names]


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, "", 1, 1.0, "1", "x", "a.jsonl:1", "b.jsonl:2", "x#0"]), max_size=4)))
def test_no_two_seeds_have_one_name(tmp_path: Path, ids: list[list[Any]]) -> None:
    paths = []
    for number, own in enumerate([*ids, ["last"]]):
        paths.append(tmp_path / f"{number}" / f"{'ab'[number % 2]}.jsonl")
        paths[-1].parent.mkdir(exist_ok=True)
        paths[-1].write_text("".join(json.dumps({"text": "one two", "id": id}) + "\n" for id in own))
    for options in ({}, {"chunk_words": 1}):
        names = [name for name, _ in read(*paths, **options)[0]]
        assert len(set(names)) == len(names) and "last" in {name.removesuffix("#1") for name in names}


# ------------------------------------------------------------------------------------------------ what is left out


def test_dropped_texts_are_counted_with_the_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    texts = ["w " * 100, "w " * 99, "", "w", " \n"]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert read(tmp_path / "s.jsonl", chunk_words=100)[1] == 4
    assert caplog.messages == ["seeds: 4 of 5 texts are left out: 2 shorter than chunk_words = 100, 2 empty"]
    with pytest.raises(InputError, match=r"seeds: none in .*s\.jsonl: 3 shorter than chunk_words = 101, 2 empty"):
        read(tmp_path / "s.jsonl", chunk_words=101)


# ------------------------------------------------------------------------------------------------ long texts


def test_of_a_long_text_only_the_prefix_is_encoded(tmp_path: Path) -> None:
    encoded = []

    def encode(text: str, name: str) -> list[int]:
        encoded.append(len(text))
        return letters(text, name)

    text = "a fish and " * 20_000
    (tmp_path / "s.txt").write_text(f"{text}\nshort one\n")
    (tmp_path / "s.jsonl").write_text(json.dumps({"text": text}))
    pq.write_table(pa.table({"text": [text]}), tmp_path / "s.parquet")
    for name in ("s.txt", "s.jsonl", "s.parquet"):
        encoded.clear()
        seeds, _ = read_seeds(tmp_path / name, encode, prefix_tokens=9)
        assert seeds[0].token_ids == letters(text, "")[:9] and sum(encoded) < 10_000
        encoded.clear()
        with pytest.raises(InputError, match=rf"seed {name}:1: has more tokens than the 50 that the models' positions"):
            read_seeds(tmp_path / name, encode, longest=50)
        assert sum(encoded) < 10_000
    assert len(read_seeds(tmp_path / "s.txt", encode, longest=len(text))[0][0].token_ids) == len(text)
    with pytest.raises(InputError, match="than the 0 that"):
        read_seeds(tmp_path / "s.txt", encode, longest=0)


# ------------------------------------------------------------------------------------------------ odd bytes


def test_a_file_whose_name_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    with open(path, "w", encoding="utf-8") as file:
        file.write("One fish.")
    with pytest.raises(InputError, match=r"its name is not UTF-8; rename it"):
        read(Path(os.fsdecode(path)))


@pytest.mark.parametrize("field", ["text", "id"])
def test_half_a_surrogate_pair_is_refused_where_it_is_read(tmp_path: Path, field: str) -> None:
    lines = [{"text": "fine", "id": "a"}, {"text": "fine", "id": "b"} | {field: "x\ud800"}]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=rf"s\.jsonl: line 2: character 1 of field '{field}' is half of a surrogate"):
        read(tmp_path / "s.jsonl")


@pytest.mark.parametrize("paths", ["", [""], [None], None, 5, b"a.txt", ["a.txt", 5]], ids=repr)
def test_what_is_no_path_is_refused(files: Path, monkeypatch: pytest.MonkeyPatch, paths: Any) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(InputError, match=r"^seeds = .*: is not the name of a file"):
        read_seeds(paths, letters)


@pytest.mark.parametrize(
    "name", ["hub:", "hub::train", "hub:json", "hub:../../etc", "hub:/etc/passwd", "hub:a/b/c", "hub:a/..", "hub:~/a"]
)
def test_a_name_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(InputError, match=f"^{re.escape(name)}: names no data set; use hub:owner/name"):
        read_seeds([name], letters)
