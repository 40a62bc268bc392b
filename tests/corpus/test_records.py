"""Readers of records: every format and encoding gives the same texts in bounded memory, and damage is reported."""

import codecs
import errno
import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdgen.corpus import manifest as manifests
from cdgen.corpus import text_files
from cdgen.corpus.records import numbered_records, records
from cdgen.corpus.text_files import lines
from cdgen.errors import InputError

TEXTS = ["One fish.", "Two fish,\næøå 🐟.", "", "Red\r\nfish\u2028."]


def zstd(data: bytes) -> bytes:
    buffer = pa.BufferOutputStream()
    with pa.CompressedOutputStream(buffer, "zstd") as stream:
        stream.write(data)
    return buffer.getvalue().to_pybytes()


PACK = {"": bytes, ".gz": gzip.compress, ".zst": zstd}
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",  # Python writes the byte-order mark itself
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
    "utf-32-le": codecs.BOM_UTF32_LE,
    "utf-32-be": codecs.BOM_UTF32_BE,
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_packing_and_encoding(
    tmp_path: Path, packing: str, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", 7)  # so that characters and lines span blocks
    path = tmp_path / f"a.jsonl{packing}"
    text = "".join(json.dumps({"text": text, "id": text[:3] or "no"}, ensure_ascii=False) + "\n" for text in TEXTS)
    path.write_bytes(PACK[packing](ENCODINGS[encoding] + text.encode(encoding)))
    assert list(records(path)) == [(text[:3] or "no", text) for text in TEXTS]
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(PACK[packing](ENCODINGS[encoding] + text.encode(encoding)))
    assert list(records(path)) == [(1, text)]


@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0")), block=st.integers(1, 9))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_lines_are_those_of_the_whole_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, block: int
) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", block)
    text = text.removeprefix("\ufeff")
    (tmp_path / "a.txt").write_bytes(text.encode())
    expected = [line.removesuffix("\r") for line in text.split("\n")]
    assert list(lines(tmp_path / "a.txt")) == (expected if text and not text.endswith("\n") else expected[:-1])


@pytest.mark.parametrize(
    "encoding, before, byte",
    [("utf-8", "æ" * 5, b"\xff"), ("utf-16-le", "fish🐟", b"\x00\xdc"), ("utf-32-be", "fish", b"\x00\x11\x00\x00")],
)
@pytest.mark.parametrize("packing", PACK)
def test_the_undecodable_byte_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str, encoding: str, before: str, byte: bytes
) -> None:
    monkeypatch.setattr(text_files, "_BLOCK", 5)
    start = ENCODINGS[encoding] + before.encode(encoding)
    (tmp_path / f"a.txt{packing}").write_bytes(PACK[packing](start + byte + "more".encode(encoding)))
    expected = f"a.txt{packing}: byte {len(start)} is not {encoding[:6].upper().rstrip('-')}; convert"
    with pytest.raises(InputError, match=expected):
        list(records(tmp_path / f"a.txt{packing}"))
    (tmp_path / f"a.txt{packing}").write_bytes(PACK[packing](start + "é".encode(encoding)[:-1]))  # truncated
    with pytest.raises(InputError, match=f"byte {len(start)} is not"):
        list(records(tmp_path / f"a.txt{packing}"))


def _parquet(*texts: str | bytes, **options: Any) -> bytes:
    buffer = io.BytesIO()
    column = pa.array([text if isinstance(text, bytes) else text.encode() for text in texts]).view(pa.string())
    pq.write_table(pa.table({"text": column}), buffer, **options)
    return buffer.getvalue()


def _table(names: list[str], columns: list[list[Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_arrays([pa.array(column) for column in columns], names=names), buffer)
    return buffer.getvalue()


LONG = [f"{number} fish " * 20 for number in range(2000)]
DAMAGED = bytearray(_parquet(*LONG, compression="zstd"))
DAMAGED[500:600] = bytes(100)


@pytest.mark.parametrize(
    "name, data, reason",
    [
        ("a.txt.gz", gzip.compress(b"fish", mtime=0)[:-6], r"a\.txt\.gz: damaged gzip"),
        ("a.jsonl.zst", zstd(b"fish" * 99)[:-3], r"a\.jsonl\.zst: damaged zstd"),
        ("a.txt.zst", b"not zstd", "damaged zstd"),
        ("a.parquet", bytes(DAMAGED), r"a\.parquet: not a Parquet file"),
        ("a.parquet", _parquet("fish")[:-9], "not a Parquet file"),
        ("a.parquet", _parquet("fish", b"fi\xff"), "a text in rows 1 to 2 is not UTF-8 from byte 2 on"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "x\\ud800"}', "line 2: character 1 of field 'text' is half of a surr"),
        ("a.jsonl", b"[" * 100000, "line 1 is not JSON"),
        ("a.jsonl", b'{"body": "fish"}', "line 1 has no field 'text'; it has body; choose one with field=NAME"),
        ("a.csv", b"a", "cannot read text from a file of this format; use"),
        ("a.parquet.gz", b"a", "cannot read text from a file of this format; use"),
        ("a.txt", "fish".encode("utf-16-le"), "byte 1 is NUL, .* if it is UTF-16 .* iconv -f UTF-16LE -t UTF-8"),
        ("a.txt", "fisk å".encode("utf-16-be"), "byte 0 is NUL, .*iconv -f UTF-16BE"),
        ("a.jsonl", '{"text": "å"}'.encode("utf-32-le"), "byte 1 is NUL, .*iconv -f UTF-32LE"),
        ("a.txt.gz", gzip.compress("fish".encode("utf-32-be"), mtime=0), "byte 0 is NUL, .*iconv -f UTF-32BE"),
        ("a.txt", "Привет мир".encode("utf-16-le"), "byte 13 is NUL, .*iconv -f UTF-16LE"),
        ("a.txt", b"one fish, two fish\0, red fish", "byte 18 is NUL, .*otherwise remove its NUL bytes"),
        ("a.txt", "Þá mælti".encode("latin-1"), "byte 0 is not UTF-8; convert .* iconv -f LATIN1 -t UTF-8"),
        ("a.jsonl", b'{"text": "a", "text": "b"}', "line 1 is not JSON: the key text is given twice"),
        ("a.jsonl", b'{"text": "a", "id": {"x": 1, "x": 2}}', "line 1 is not JSON: the key x is given twice"),
        ("a.jsonl", b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 1 is not JSON: Exceeds the limit"),
        ("a.jsonl", b'{"text": ["a"]}', "line 1: field 'text' is not text but list"),
        ("a.jsonl", b'{"text": "a", "id": true}', "line 1: field 'id' is not text but bool"),
        ("a.jsonl", b'{"text": "a", "id": [1]}', "line 1: field 'id' is not text but list"),
        ("a.parquet", _table(["text", "text"], [["a"], ["b"]]), "has 2 columns named 'text'; rename or drop all but"),
        ("a.parquet", _table(["text", "id", "id"], [["a"], ["b"], ["c"]]), "has 2 columns named 'id'"),
        ("a.parquet", _table(["text"], [[["a"]]]), "row 1: field 'text' is not text but list"),
        ("a.parquet", _table(["text"], [[None, 5]]), "row 2: field 'text' is not text but int"),
        ("a.parquet", _table(["text"], [[b"a"]]), "row 1: field 'text' is not text but bytes"),
        ("a.parquet", b"", "not a Parquet file"),
    ],
)
def test_damage_is_reported_with_its_place(tmp_path: Path, name: str, data: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=reason) as caught:
        list(records(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_datasets_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"text": TEXTS, "id": list("wxyz"), "n": [1, 2, 3, 4]}).save_to_disk(tmp_path / "d")
    assert list(records(tmp_path / "d")) == list(zip("wxyz", TEXTS, strict=True))
    with pytest.raises(InputError, match=r"no field 'body'; it has text, id, n; set body"):
        list(records(tmp_path / "d", "body", remedy="set body"))


def test_a_folder_of_files_is_what_datasets_loads(tmp_path: Path) -> None:
    """The files of such a folder form one data set; `datasets` decides which they are, from a card or their names."""
    pytest.importorskip("datasets")
    folder = tmp_path / "tables"
    (folder / "data").mkdir(parents=True)
    rows = [{"id": name, "text": text, "n": 1} for name, text in zip("wxyz", TEXTS, strict=True)]
    pq.write_table(pa.Table.from_pylist(rows[:3]), folder / "data/train-00000.parquet")
    pq.write_table(pa.Table.from_pylist(rows[3:]), folder / "data/train-00001.parquet")
    (folder / "README.md").write_text("A card without metadata.")
    expected = list(zip("wxyz", TEXTS, strict=True))
    assert list(records(folder)) == expected
    with pytest.raises(InputError, match=r"tables: no field 'body'; it has id, text, n; set body"):
        list(records(folder, "body", remedy="set body"))

    pq.write_table(pa.Table.from_pylist(rows), folder / "extra.parquet")
    (folder / "README.md").write_text("---\nconfigs: [{config_name: default, data_files: extra.parquet}]\n---\n")
    (folder / "data/train-00000.parquet").write_bytes(b"not read")
    assert list(records(folder)) == expected
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: extra.parquet}\n"
        "  - {split: test, path: data/train-00001.parquet}\n---\n"
    )
    with pytest.raises(InputError, match=r"tables: holds the splits train, test; give the files of one of them$"):
        list(records(folder))


@pytest.mark.parametrize(
    "stated",
    ["../secret.jsonl", "/etc/passwd", "data/../../secret.jsonl", "http://localhost/x.jsonl", "file:/etc/hosts", "~/x"],
)
def test_a_folder_of_datasets_names_no_file_outside_of_it(tmp_path: Path, stated: str) -> None:
    """Neither in any form of its card nor in the state of a saved data set."""
    datasets = pytest.importorskip("datasets")
    (tmp_path / "secret.jsonl").write_text('{"text": "secret"}\n')
    folder = tmp_path / "d"
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(folder)
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"][0]["filename"] = stated
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(
        InputError, match=r"d/state.json: names the data file .*, which may be outside this folder; give"
    ):
        list(records(folder))
    (folder / "state.json").unlink()
    configs = (
        f"data_files: '{stated}'",
        f"data_files: [{{split: train, path: [a.jsonl, '{stated}']}}]",
        f"data_dir: '{stated}'",
    )
    for config in configs:
        (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {config}\n---\ntext\n")
        with pytest.raises(InputError, match=r"d/README.md: names the data file "):
            list(records(folder))
    # Only a line of three hyphens ends the metadata of a card.
    (folder / "README.md").write_text(f"---\nkey: |\n  text\n---x: 1\nconfigs:\n- {{{configs[0]}}}\n---\n")
    with pytest.raises(InputError, match=r"d/README.md: names the data file "):
        list(records(folder))
    (folder / "README.md").unlink()
    (folder / ".huggingface.yaml").write_text(f"configs:\n- config_name: default\n  {configs[0]}\n")
    with pytest.raises(InputError, match=r"d/.huggingface.yaml: names the data file "):
        list(records(folder))


def test_folders_of_json_and_text(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    rows = [json.dumps({"text": text, "id": number}) for number, text in enumerate(TEXTS, 5)]
    for name, part in (("a.jsonl", rows[:2]), ("b.jsonl", rows[2:])):
        (tmp_path / "json").mkdir(exist_ok=True)
        (tmp_path / "json" / name).write_text("\n".join(part))
    assert list(records(tmp_path / "json")) == [(str(number), text) for number, text in enumerate(TEXTS, 5)]
    with pytest.raises(InputError, match=r"json: row 1 has no field 'body'|json: no field 'body'"):
        list(records(tmp_path / "json", "body"))
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("one\ntwo\n")
    with pytest.raises(InputError, match=r"text: is a folder of text files; give the files themselves$"):
        list(records(tmp_path / "text"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: not a folder of datasets; use") as caught:
        list(records(tmp_path / "empty"))
    assert "\n" not in str(caught.value)


def test_the_hub_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is faked, since tests have no network."""
    datasets = pytest.importorskip("datasets")

    def load_dataset(
        name: str, config: str | None, *, split: str, streaming: bool, trust_remote_code: bool
    ) -> Iterator[dict[str, Any]]:
        assert streaming and trust_remote_code is False, "datasets 3 would ask on the terminal"
        if name != "owner/name":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub\nand more")
        return iter([{"text": f"{config or ''} {split} fish".strip(), "other": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(records("hub:owner/name")) == [(1, "train fish")]
    assert list(records("hub:owner/name:test")) == [(1, "test fish")]
    assert list(records("hub:owner/name:small:test")) == [(1, "small test fish")]
    with pytest.raises(InputError, match=r"hub:none/none: cannot be read from the hub: Dataset .* on the Hub$"):
        list(records("hub:none/none"))
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"^hub:owner/name:test: datasets would read {tmp_path}/owner/name instead"):
        list(records("hub:owner/name:test"))


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.txt"])
def test_a_file_is_never_in_memory_whole(tmp_path: Path, name: str) -> None:
    """Of 32 MB of text, Python holds less than a quarter and Arrow less than half."""
    texts = [f"{number} " + "fish " * 2000 for number in range(3200)]
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), tmp_path / name, use_dictionary=False)
    else:
        rows = texts if name == "a.txt" else [json.dumps({"text": text}) for text in texts]
        packing = "" if name == "a.txt" else name.removeprefix("a.jsonl")
        (tmp_path / name).write_bytes(PACK[packing]("\n".join(rows).encode()))
    expected = [text.strip() for text in texts]
    del texts
    tracemalloc.start()
    arrow = pa.total_allocated_bytes()
    most = 0
    for index, (number, text) in enumerate(
        (one.number, one.text) for one in numbered_records(tmp_path / name, remedy="", whole=False)
    ):
        assert number == index + 1 and text.strip() == expected[index]
        most = max(most, pa.total_allocated_bytes() - arrow)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert index == 3199 and peak < 8e6 and most < 16e6  # Arrow: 14 MB for its pages, however long the file


def test_nulls_ids_and_line_ends(tmp_path: Path) -> None:
    """Null is an empty text. Null, an empty string and NaN are no id; numbers are ids."""
    (tmp_path / "a.parquet").write_bytes(_table(["text", "id"], [["a", None, "c"], [1.5, float("nan"), None]]))
    assert list(records(tmp_path / "a.parquet")) == [("1.5", "a"), (2, ""), (3, "c")]
    (tmp_path / "a.parquet").write_bytes(_table(["text"], [[None, None]]))
    assert list(records(tmp_path / "a.parquet")) == [(1, ""), (2, "")]
    category = pa.array(["a", "b", "a"]).dictionary_encode()
    pq.write_table(pa.table({"text": category, "id": pa.array([7, 8, 9], pa.uint64())}), tmp_path / "a.parquet")
    assert list(records(tmp_path / "a.parquet")) == [("7", "a"), ("8", "b"), ("9", "a")]
    (tmp_path / "a.jsonl").write_text('{"text": "a\\u0000b", "id": ""}\n')
    assert list(records(tmp_path / "a.jsonl")) == [(1, "a\0b")]
    (tmp_path / "a.txt").write_bytes(codecs.BOM_UTF8 + b"One\r\n\r\ntwo\r\n")
    assert list(records(tmp_path / "a.txt")) == [(1, "One\n\ntwo\n")]
    assert [one.text for one in numbered_records(tmp_path / "a.txt", remedy="", whole=False)] == ["One", "", "two"]


def test_messages_are_short_and_safe_to_print(tmp_path: Path) -> None:
    """A file may have thousands of fields, and their names may be long or clear the screen."""
    names = ["\x1b[2J", "long" * 1000, *(f"field {number}" for number in range(5000))]
    reason = r"it has \\x1b\[2J, (long){10}\.\.\., field 0, .*field 5 and 4994 more; choose one"
    (tmp_path / "a.jsonl").write_text(json.dumps(dict.fromkeys(names, "x")))
    pq.write_table(pa.table({name: ["x"] for name in names}), tmp_path / "a.parquet")
    for name in ("a.jsonl", "a.parquet"):
        with pytest.raises(InputError, match=reason) as caught:
            list(records(tmp_path / name))
        assert len(str(caught.value)) < 500
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x", "y": 1})[:-1] + ', "\\u001b[2J": 1, "\\u001b[2J": 2}')
    with pytest.raises(InputError, match=r"the key \\x1b\[2J is given twice"):
        list(records(tmp_path / "a.jsonl"))


def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "loop.txt").symlink_to("loop.txt")
    (tmp_path / "folder.txt").mkdir()
    for name, reason in (
        ("pipe.txt", "is neither a file nor a folder"),
        ("loop.txt", "no such file|cannot be read"),
        ("folder.txt", "not a folder of datasets"),
        ("x" * 300 + ".txt", "cannot be read: File name too long"),
        ("null\0.txt", "cannot be read|no such file"),
    ):
        with pytest.raises(InputError, match=reason):
            list(records(tmp_path / name))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.txt.zst", "a.parquet"])
def test_a_file_that_may_not_be_read(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`open` is replaced, since root may read everything."""

    def refuse(path: Path, *args: Any, **options: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    (tmp_path / name).write_bytes(b"")
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(InputError, match=rf"{name}: cannot be read: Permission denied"):
        list(records(tmp_path / name))


def test_a_generated_corpus_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    """Its rows would be the seeds of another corpus, or a source, before all of them are there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train-00000.jsonl").write_text(json.dumps({"text": "One fish."}) + "\n")
    assert [each.text for each in records(tmp_path)] == ["One fish."]
    settings = {"ignore_eos": False, "split_documents": False, "format": "jsonl.gz"}
    models = {"good": {"name": "G", "fingerprint": "sha256:0"}, "bad": None}
    manifest = manifests.new(settings, models, {"fingerprint": "0"})
    manifests.list_shards(manifest, {})
    (tmp_path / manifests.NAME).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is not finished; resume its generation first"):
        list(records(tmp_path))
