"""A prepared folder is complete or untouched: after reruns, a full disk, kill -9, and sources that change meanwhile."""

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from cdgen.cli import main
from cdgen.errors import CorpusError, InputError
from cdgen.prepare import build
from cdgen.prepare.build import prepare_corpus
from cdgen.prepare.index import Decision
from cdgen.prepare.sources import Source, parse_source
from cdgen.storage import manifest as manifests
from tests.conftest import CommandLine
from tests.helpers.prepared import SPLITS, contents, fish, jsonl, split_of


def test_a_rerun_does_nothing_and_another_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    jsonl(tmp_path / "in" / "a.jsonl", fish(200))
    out = tmp_path / "out"

    def run(*extra: str, folder: str = "in") -> tuple[int, str]:
        code = main(["prepare", str(tmp_path / folder / "a.jsonl"), "--out", str(out), *extra])
        return code, "".join(capsys.readouterr())

    code, printed = run()
    assert code == 0 and "out: written; train: 1" in printed and "0 duplicates left out" in printed
    before, times = contents(out), {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    shutil.copytree(tmp_path / "in", tmp_path / "elsewhere")
    for folder in ("in", "elsewhere"):
        code, printed = run(folder=folder)
        assert code == 0 and "out: already complete, nothing to do" in printed
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
    assert set(contents(out)) == {"README.md", "manifest.json", "train.parquet", "test.parquet"}
    assert len(split_of(out)) == 201


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"seed": 7}, "seed = 42, but now seed = 7"),
        ({"test": 0.2}, "test = 0.05, but now test = 0.2"),
        ({"name": "b"}, "it no longer has the source a"),
        ({"more": True}, "it did not have the source more"),
        ({"field": "body"}, "source a: field = text, but now field = body"),
        ({"text": "changed"}, r"source a: the content of a\.jsonl has changed"),
    ],
)
def test_another_corpus_is_refused_with_the_difference(tmp_path: Path, changes: dict[str, Any], reason: str) -> None:
    path = tmp_path / "a.jsonl"
    content = "".join(json.dumps({"text": text, "body": text}) + "\n" for text in fish(200))
    path.write_text(content)
    prepare_corpus(Source("a", path), tmp_path / "out")
    before = contents(tmp_path / "out")
    path.write_text(content.replace("fish 7", changes.pop("text", "fish 7")))
    sources = [Source(changes.pop("name", "a"), path, field=changes.pop("field", "text"))]
    if changes.pop("more", False):
        sources.append(Source("more", jsonl(tmp_path / "more.jsonl", fish(9, 300))))
    with pytest.raises(InputError, match=rf"holds a corpus of other sources or settings \({reason}\); choose another"):
        prepare_corpus(sources, tmp_path / "out", **changes)
    assert contents(tmp_path / "out") == before


def test_overwriting_keeps_the_old_corpus_until_the_new_one_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that no manifest lists are never replaced or deleted."""
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    prepare_corpus(jsonl(path, fish(200)), out, seeds=0)
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    path.write_text(path.read_text() + '{"text": 5}\n')  # found in the first pass over the text
    with pytest.raises(InputError, match="line 201: field 'text' is not text but int"):
        prepare_corpus(path, out, seed=7, overwrite=True)
    assert contents(out) == before
    jsonl(path, fish(200))
    monkeypatch.setattr(build, "_distribute", lambda *args: 1 / 0)  # fails in the second pass
    with pytest.raises(ZeroDivisionError):
        prepare_corpus(path, out, seed=7, overwrite=True)
    assert contents(out) == before
    monkeypatch.undo()
    (out / "seeds.parquet").write_text("mine")
    with pytest.raises(CorpusError, match=r"seeds\.parquet: is in the way"):
        prepare_corpus(path, out, seed=7, overwrite=True)
    assert contents(out) == before | {"seeds.parquet": b"mine"}
    (out / "seeds.parquet").unlink()
    prepare_corpus(path, out, seed=7, overwrite=True)
    assert set(contents(out)) == {*before, "seeds.parquet"} and contents(out)["notes.txt"] == b"mine"


def test_full_disk(cdgen_command: CommandLine, tmp_path: Path) -> None:
    """Files are limited to 6,000 bytes: test and seeds fit, train does not."""
    argv = ["prepare", jsonl(tmp_path / "a.jsonl", fish(3000)), "--out", tmp_path / "out", "--quiet"]
    code, output = cdgen_command(*argv, limit=6000)
    assert code == 1 and output.count("\n") == 1, output
    assert output.startswith("cdgen: error: ") and "out: cannot be written: File too large" in output
    assert not (tmp_path / "out").exists()
    assert cdgen_command(*argv) == (0, "") and len(split_of(tmp_path / "out")) == 3000


@pytest.mark.slow
def test_kill_9_leaves_no_half_file(cdgen_command: CommandLine, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", (text * 40 for text in fish(20000)))
    assert cdgen_command("prepare", path, "--out", tmp_path / "uninterrupted", "--quiet") == (0, "")
    out = tmp_path / "out"
    for _ in range(3):
        child = cdgen_command.start("prepare", path, "--out", out, "--quiet")
        deadline = time.monotonic() + 30
        while not list(out.glob(".cdgen-*-seeds.parquet")) and time.monotonic() < deadline:
            time.sleep(0.0005)
        os.kill(child, signal.SIGKILL)
        code, output = cdgen_command.wait()
        assert code == -signal.SIGKILL, f"ended by itself with {code}: {output}"
        names = {re.sub(r"^\.cdgen-[0-9a-f]{16}-", ".cdgen-", path.name) for path in out.iterdir()}
        assert names == {".cdgen-manifest.json", *(f".cdgen-{split}.parquet" for split in SPLITS)}
    assert cdgen_command("prepare", path, "--out", out, "--quiet") == (0, "")
    assert contents(out) == contents(tmp_path / "uninterrupted")


@pytest.mark.parametrize("files_there", range(3))
def test_a_rerun_completes_a_folder_that_was_killed_between_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_there: int
) -> None:
    source = Source("a", jsonl(tmp_path / "a.jsonl", fish(200)))
    prepare_corpus([source], tmp_path / "uninterrupted")

    class Killed(BaseException):
        pass

    replace = os.replace

    def kill(old: Path, new: Path) -> None:
        if len(list((tmp_path / "out").glob("[!.]*.parquet"))) == files_there and str(new).endswith(".parquet"):
            raise Killed
        replace(old, new)

    monkeypatch.setattr(os, "replace", kill)
    with pytest.raises(Killed):
        prepare_corpus([source], tmp_path / "out")
    monkeypatch.undo()
    assert prepare_corpus([source], tmp_path / "out").written
    assert contents(tmp_path / "out") == contents(tmp_path / "uninterrupted")


def test_a_source_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = jsonl(tmp_path / "a.jsonl", fish(200))
    decide = build.Index.decide

    def change(*args: Any) -> Decision:
        with open(path, "a") as file:
            file.write(json.dumps({"text": "more"}) + "\n")
        return decide(*args)

    monkeypatch.setattr(build.Index, "decide", change)
    with pytest.raises(CorpusError, match=r"a\.jsonl: changed while it was read; rerun"):
        prepare_corpus([Source("a", path)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hub_that_gives_other_documents_the_second_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is faked, since tests have no network."""
    datasets = pytest.importorskip("datasets")
    given = [fish(200), fish(200), fish(200), fish(199)]
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: iter([{"text": text} for text in given.pop(0)]))
    source = parse_source("hub:own/name:validation")
    prepare_corpus([source], tmp_path / "out")
    assert len(split_of(tmp_path / "out")) == 200
    manifest = manifests.read(tmp_path / "out", manifests.PREPARED)
    assert manifest is not None and manifest["sources"][0]["inputs"][0]["sha256"] is None
    with pytest.raises(CorpusError, match="the sources changed while they were read"):
        prepare_corpus([source], tmp_path / "other")
