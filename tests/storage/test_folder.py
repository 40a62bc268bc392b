"""Output folders: foreign files stay, own folders are removed after an error, and files appear whole or not at all."""

import os
from pathlib import Path

import pytest

from cdgen.errors import CorpusError, InputError
from cdgen.storage.folder import OutputFolder, file_sha256

FOREIGN = (".tmp-notes.txt", ".tmp-manifest.json", "shard-00000.parquet", ".cdgen-notes", "data/mine.parquet")
STALE = ".cdgen-0123456789abcdef-a.txt"


def test_only_temporary_files_of_cdgen_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".tmp-folder").mkdir()
    (tmp_path / "data").mkdir()
    for name in (*FOREIGN, ".tmp-folder/file", STALE):
        (tmp_path / name).write_text("mine")
    (tmp_path / STALE.replace("a.txt", "folder")).mkdir()
    with OutputFolder(tmp_path) as folder:
        folder.write("a.txt", b"a")
    assert all((tmp_path / name).read_text() == "mine" for name in (*FOREIGN, ".tmp-folder/file"))
    assert not list(tmp_path.glob(".cdgen-0*")) and (tmp_path / "a.txt").read_text() == "a"


def fail(path: Path) -> None:
    with pytest.raises(ZeroDivisionError), OutputFolder(path):
        raise ZeroDivisionError


def test_after_an_error_only_folders_that_were_created_are_removed(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    fail(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()
    fail(tmp_path / "mine" / "a" / "b")
    assert list((tmp_path / "mine").iterdir()) == []
    with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path / "new") as folder:
        folder.write("data/a", b"a")
        raise ZeroDivisionError
    assert (tmp_path / "new" / "data" / "a").read_bytes() == b"a"


def test_a_subfolder_of_a_failed_write_is_removed(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), OutputFolder(tmp_path) as folder, folder.stream("data/a"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_paths_that_cannot_be_a_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out = '': is empty; name a folder, or \. for the current folder"):
        OutputFolder("")
    with pytest.raises(InputError, match="out = None: must be the name of a folder"):
        OutputFolder(None)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, reason in (("a\0b", "null"), ("file", "File exists"), ("file/a", "Not a directory"), ("link", "File")):
        with pytest.raises(CorpusError, match=f"cannot create this folder: .*{reason}"), OutputFolder(tmp_path / name):
            pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_name_that_is_taken_by_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("mine")
    with OutputFolder(tmp_path) as folder, pytest.raises(CorpusError, match="cannot be written: "):
        folder.write("data/a", b"a")
    assert (tmp_path / "data").read_text() == "mine"


def test_files_get_their_names_in_order_once_all_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named: list[str] = []
    replace = os.replace

    def spy(old: Path, new: Path) -> None:
        assert sorted(path.read_bytes() for path in tmp_path.glob(".cdgen-*")) == [b"a", b"b"][len(named) :]
        named.append(new.name)
        replace(old, new)

    monkeypatch.setattr("cdgen.storage.folder.os.replace", spy)
    with OutputFolder(tmp_path) as folder:
        folder.write_all({"first": b"a", "data/second": b"b"})
    assert named == ["first", "second"]


def test_removing_follows_no_links_and_takes_exact_names(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    (out / "[ab]").mkdir(parents=True)
    other.mkdir()
    (other / "file").write_text("mine")
    (out / "link").symlink_to(other)
    for name in ("a", "b", "[ab]/c"):
        (out / name).write_text("x")
    with OutputFolder(out) as folder:
        folder.remove("[ab]", "link", "absent")
    assert sorted(path.name for path in out.iterdir()) == ["a", "b"] and (other / "file").read_text() == "mine"


def test_only_regular_files_have_a_checksum(tmp_path: Path) -> None:
    """Reading a pipe would wait for a writer, and reading a device might never end."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("pipe", "device"):
        with pytest.raises(OSError, match="is not a regular file"):
            file_sha256(tmp_path / name)
        with OutputFolder(tmp_path) as folder, pytest.raises(CorpusError, match=f"{name}: cannot be read: is not a"):
            folder.sha256(name)
