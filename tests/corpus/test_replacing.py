"""A new corpus in the place of an old one: at every moment the folder holds the old one or a consistent new one."""

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus.find import find
from cdgen.corpus.manifest import NAME
from cdgen.corpus.writer import write_corpus
from cdgen.errors import CorpusError, InputError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from tests.helpers.corpora import bytes_of, numbered_seeds

OLD = {"params": SamplingParams(max_tokens=2), "split_documents": True}
NEW = {"params": SamplingParams(max_tokens=3)}


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"])


def write(lm: ContrastiveLM, out: Path, params: SamplingParams, **options: Any) -> tuple[Manifest, int]:
    with OutputFolder(out) as folder:
        return write_corpus(lm, numbered_seeds(2), folder, params, **{"shard_size": 1} | options)


def visible(out: Path) -> dict[str, bytes]:
    """Return the content of every file by path, without cdgen's temporary files and journals."""
    return {name: data for name, data in bytes_of(out).items() if not name.startswith(".cdgen-")}


class Killed(BaseException):
    """Stands for kill -9: nothing after it has an effect."""


def kill_after(calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a process end at one of its system calls that change what is on the disk."""
    left = calls

    def counted(call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*arguments: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1:
                raise Killed
            if left < 0:  # the clean-up of a process that is dead
                raise OSError("dead")
            return call(*arguments, **options)

        return counting

    for name in ("os.replace", "os.fsync"):
        monkeypatch.setattr(f"cdgen.storage.folder.{name}", counted(getattr(os, name[3:])))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(Path, "rmdir", counted(Path.rmdir))


@pytest.mark.parametrize(
    "new",
    [
        pytest.param(NEW, id="other settings"),
        pytest.param(NEW | {"shard_size": 2}, id="a single shard"),
        pytest.param(OLD, id="the same settings", marks=pytest.mark.slow),
    ],
)
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_corpus(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new: dict[str, Any]
) -> None:
    write(lm, tmp_path / "old", **OLD)
    write(lm, tmp_path / "new", **new)
    old, expected = visible(tmp_path / "old"), visible(tmp_path / "new")
    replaced, killed = 0, True
    for calls in range(1000):
        out = shutil.copytree(tmp_path / "old", tmp_path / f"out{calls}")
        with monkeypatch.context() as patched:
            kill_after(calls, patched)
            try:
                write(lm, out, **new, resume=False)
                killed = False
            except Killed:
                pass
        if not killed:
            break
        present = visible(out)
        if present[NAME] == old[NAME] and not replaced:
            assert present == old, "the old corpus must be whole until the new one takes its place"
            assert write(lm, out, **OLD)[1] == 0
            write(lm, out, **new, resume=False)
        else:
            replaced += 1
            with contextlib.suppress(InputError, CorpusError):  # the corpus is unfinished, or lacks a shard
                assert find(out).fingerprint == find(tmp_path / "new").fingerprint
            write(lm, out, **new)
        assert visible(out) == expected
    assert not killed and replaced > 4 and visible(out) == expected


def test_a_run_that_fails_before_its_first_shard_changes_nothing(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    write(lm, out, **OLD)
    before = visible(out)
    with monkeypatch.context() as patched:
        patched.setattr(lm, "continue_sequences", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(MemoryError):
            write(lm, out, **NEW, resume=False)
    assert visible(out) == before
    with pytest.raises(InputError, match="shard_size = 0"):
        write(lm, out, **NEW, resume=False, shard_size=0)
    assert visible(out) == before and write(lm, out, **OLD)[1] == 0


def test_a_full_disk_keeps_the_old_corpus(lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    write(lm, out, **OLD)
    before = visible(out)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("cdgen.storage.folder.os.fsync", full)
        with pytest.raises(CorpusError, match="cannot be written: No space left on device"):
            write(lm, out, **NEW, resume=False)
    assert visible(out) == before


def test_a_run_without_shards_is_no_obstacle(lm: ContrastiveLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(lm, out, **OLD)
    for path in [*out.glob("data/*"), *out.glob("_documents/*")]:
        path.unlink()
    write(lm, out, **NEW)
    write(lm, tmp_path / "new", **NEW)
    assert visible(out) == visible(tmp_path / "new")


def test_foreign_files_stay_or_stop_the_run(lm: ContrastiveLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "data").mkdir(parents=True)
    (out / "_documents").mkdir()
    foreign = ("notes.txt", "data/notes.txt", ".tmp-data", "shard-00000.parquet", "documents-00000.parquet")
    for name in foreign:
        (out / name).write_text("mine")
    for options in (OLD, NEW | {"resume": False}):
        write(lm, out, **options)
        assert all((out / name).read_text() == "mine" for name in foreign)
    for name in ("data/train-00007.parquet", "_documents/00000.parquet"):
        (out / name).write_text("mine")
        for options in (NEW, OLD | {"resume": False}):
            with pytest.raises(
                CorpusError, match=f"{name}: is in the way, and no manifest lists it; move it, or choose"
            ):
                write(lm, out, **options)
        assert (out / name).read_text() == "mine"
        (out / name).unlink()


def test_a_corpus_does_not_replace_its_own_seeds(lm: ContrastiveLM, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(lm, out, **OLD)
    before = visible(out)
    (tmp_path / "link").symlink_to(out / "data/train-00001.parquet")
    for path in (out / "data/train-00001.parquet", out / "_documents/00000.parquet", tmp_path / "link"):
        with pytest.raises(InputError, match="is read, but would also be replaced by the output; write to another"):
            write(lm, out, **NEW, resume=False, seeds_info={"paths": [str(path)]})
    assert visible(out) == before
    shutil.copy(out / "data/train-00001.parquet", out / "seeds.parquet")
    write(lm, out, **NEW, resume=False, seeds_info={"paths": [str(out / "seeds.parquet")]})
    assert (out / "seeds.parquet").read_bytes() == before["data/train-00001.parquet"]


def test_a_manifest_that_lists_other_files_deletes_none(lm: ContrastiveLM, tmp_path: Path) -> None:
    """Manifests may come from elsewhere."""
    out = tmp_path / "out"
    manifest, _ = write(lm, out, **OLD)
    for path in (tmp_path / "precious.txt", out / "precious.txt"):
        path.write_text("mine")
    for name in ("../precious.txt", "precious.txt", str(tmp_path / "precious.txt"), "data/../precious.txt"):
        for fields in ({"shards": [manifest["shards"][0] | {"name": name}]}, {"replaces": [name]}):
            (out / NAME).write_text(json.dumps(manifest | fields))
            for resume in (True, False):
                with pytest.raises(CorpusError, match=r"_manifest\.json: is damaged: field '.*' is not of the form"):
                    write(lm, out, **OLD, resume=resume)
    (out / NAME).write_text(json.dumps(manifest | {"shards": [manifest["shards"][0] | {"number": 5}]}))
    with pytest.raises(CorpusError, match=r"field 'shards\[0\]\.name' is not data/train-00005\.parquet"):
        write(lm, out, **OLD)
    assert (tmp_path / "precious.txt").read_text() == (out / "precious.txt").read_text() == "mine"
