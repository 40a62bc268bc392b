"""Resuming within a shard: documents that were finished before a crash are kept, and nothing else is trusted."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus import manifest as manifests
from cdgen.corpus import writer
from cdgen.corpus.writer import write_corpus
from cdgen.engine.outputs import CompletionOutput
from cdgen.errors import CorpusError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import Silent
from tests.helpers.corpora import bytes_of, decoded, finish_in_order, numbered_seeds

PARAMS = SamplingParams(n=2, max_tokens=6)
SEEDS = numbered_seeds(6)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=4)


@pytest.fixture(scope="module")
def static(folders: dict[str, Path]) -> ContrastiveLM:
    """Return models that are decoded in static batches, with a BAD whose noise depends on the batch."""
    lm = ContrastiveLM(folders["good"], dropout=0.5, max_num_seqs=4)
    lm.static_reason = "for this test"
    return lm


def write(lm: ContrastiveLM, out: Path, params: SamplingParams = PARAMS, **options: Any) -> tuple[Manifest, int]:
    with OutputFolder(out) as folder:
        return write_corpus(lm, SEEDS, folder, params, **{"shard_size": 10, "split_documents": True} | options)


class Crashing(writer.Journal):
    """A journal of a process that is killed once this many documents are written."""

    left = 0

    def add(self, shard: int, place: int, output: CompletionOutput) -> None:
        super().add(shard, place, output)
        Crashing.left -= 1
        if not Crashing.left:
            raise KeyboardInterrupt


def crash(lm: ContrastiveLM, out: Path, monkeypatch: pytest.MonkeyPatch, after: int, **options: Any) -> list[Path]:
    """Start a corpus, crash when some documents are finished, and return the journal's files."""
    with monkeypatch.context() as patched:
        patched.setattr(Crashing, "left", after)
        patched.setattr("cdgen.corpus.writer.Journal", Crashing)
        with pytest.raises(KeyboardInterrupt):
            write(lm, out, **options)
    return sorted(out.glob(".cdgen-journal-*"))


@pytest.fixture(scope="module")
def expected(lm: ContrastiveLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    write(lm, out := tmp_path_factory.mktemp("expected"))
    return bytes_of(out)


@pytest.mark.parametrize("after", [1, 7, 10, 11, 12])
def test_a_shard_is_resumed(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    crash(lm, tmp_path, monkeypatch, after)
    again = decoded(lm, monkeypatch)
    write(lm, tmp_path)
    assert len(again) == 12 - after
    assert bytes_of(tmp_path).keys() == expected.keys(), "no journal remains"
    assert bytes_of(tmp_path) == expected


@pytest.mark.parametrize("harm", ["cut", "torn", "nulls", "edited", "foreign"])
def test_lines_that_are_damaged_are_decoded_again(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    (journal,) = crash(lm, tmp_path, monkeypatch, 5)
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    lines[3:] = {
        "cut": [lines[3], lines[4][:-1]],
        "torn": [lines[3], lines[4][:30]],
        "nulls": [lines[3], b"\0" * len(lines[4])],
        "edited": [lines[3], lines[4].replace(b"length", b"lengthy")],
        "foreign": [lines[3], b'{"mine": true}\n'],
    }[harm]
    journal.write_bytes(b"".join(lines))
    again = decoded(lm, monkeypatch)
    crash(lm, tmp_path, monkeypatch, 2)
    write(lm, tmp_path)
    assert len(again) == (12 - 4) + (12 - 6) and bytes_of(tmp_path) == expected


def test_a_journal_belongs_to_its_settings_and_shard(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = SamplingParams(n=2, max_tokens=5)
    (journal,) = crash(lm, tmp_path, monkeypatch, 5)
    kept = journal.read_bytes()
    again = decoded(lm, monkeypatch)
    write(lm, tmp_path, other)
    assert len(again) == 12 and not list(tmp_path.glob(".cdgen-*"))
    journal.write_bytes(kept)  # the process was killed before it could delete the journal of a shard that is written
    again.clear()
    write(lm, tmp_path, resume=False)
    assert len(again) == 12 and bytes_of(tmp_path) == expected
    journal.write_bytes(kept)
    (tmp_path / "data/train-00001.parquet").unlink()
    again.clear()
    write(lm, tmp_path)
    assert again == [(5, 0), (5, 1)] and bytes_of(tmp_path) == expected


def test_no_resume_keeps_the_old_journal_until_its_first_shard(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash(lm, tmp_path, monkeypatch, 11)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Crashing, "left", 3)
        patched.setattr("cdgen.corpus.writer.Journal", Crashing)
        write(lm, tmp_path, SamplingParams(n=2, max_tokens=5), resume=False)
    again = decoded(lm, monkeypatch)
    write(lm, tmp_path)
    assert len(again) == 1 and bytes_of(tmp_path) == expected


@pytest.mark.parametrize("after", [3, 4, 6])
def test_a_static_batch_is_kept_whole_or_decoded_again(
    static: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    params = SamplingParams(n=2, max_tokens=6, ignore_eos=True, alpha=0.01)
    write(static, tmp_path / "expected", params)
    crash(static, tmp_path / "out", monkeypatch, after, params=params)
    again = decoded(static, monkeypatch)
    write(static, tmp_path / "out", params)
    assert len(again) == 12 - after // 4 * 4
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "expected")


def test_a_journal_that_cannot_be_written(lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (journal,) = crash(lm, tmp_path, monkeypatch, 1)
    journal.unlink()
    journal.mkdir()
    with pytest.raises(CorpusError, match=r"\.cdgen-journal-\w+-00000\.jsonl: cannot be read: Is a directory"):
        write(lm, tmp_path)
    with pytest.raises(CorpusError, match=r"\.cdgen-journal-\w+-00000\.jsonl: cannot be written: Is a directory"):
        write(lm, tmp_path, resume=False)


def test_the_journal_holds_one_line_per_document(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = SamplingParams(n=2, max_tokens=6, logprobs=True)
    (journal,) = crash(lm, tmp_path, monkeypatch, 4, params=params)
    lines = journal.read_bytes().splitlines()
    found = [json.loads(line.partition(b" ")[2]) for line in lines]
    assert [shard for shard, *_ in found] == [0] * 4 and len({place for _, place, _ in found}) == 4
    assert all(len(output["token_ids"]) == len(output["logprobs"]) for *_, output in found)
    write(lm, tmp_path, params)
    rows = pq.read_table(tmp_path / "data/train-00000.parquet").to_pylist()
    for _, place, output in found:
        assert rows[place]["bad_logprob"] == pytest.approx([bad for *_, bad in output["logprobs"]], abs=1e-6)


@pytest.mark.parametrize("file", ["-00001", ""])  # without a number: the only file of an earlier version
def test_the_journal_of_a_complete_corpus_is_deleted(lm: ContrastiveLM, tmp_path: Path, file: str) -> None:
    """A process was killed between the last shard and the deletion."""
    write(lm, tmp_path)
    before = bytes_of(tmp_path)
    fingerprint = manifests.fingerprint(json.loads(before["_manifest.json"]))
    (tmp_path / f".cdgen-journal-{fingerprint[:16]}{file}.jsonl").write_text("x\n")
    assert write(lm, tmp_path)[1] == 0 and bytes_of(tmp_path) == before


def test_documents_of_several_unfinished_shards_are_kept(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lm, tmp_path / "expected", shard_size=3)
    out, order = tmp_path / "out", [0, 3, 6, 9, 4, 1, 10, 7, 2, 5, 8, 11]
    with monkeypatch.context() as patched:
        finish_in_order(lm, patched, order.index)
        journals = crash(lm, out, monkeypatch, 8, shard_size=3)
    assert [len(path.read_bytes().splitlines()) for path in journals] == [2, 2, 2, 2]
    journals[1].write_bytes(journals[1].read_bytes()[:-5])  # the process was killed while it wrote this line
    journals[2].write_bytes(journals[0].read_bytes())  # documents of another shard
    again = decoded(lm, monkeypatch)
    crash(lm, out, monkeypatch, 1, shard_size=3)  # row 2, which completes the first shard
    assert sorted(again) == [(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (5, 1)]
    again.clear()
    write(lm, out, shard_size=3)
    assert len(again) == 6 and bytes_of(out) == bytes_of(tmp_path / "expected")


def test_only_the_file_of_a_written_shard_is_deleted(tmp_path: Path) -> None:
    outputs = [CompletionOutput(at, f"text {at}", [at], "length") for at in range(4)]
    with OutputFolder(tmp_path) as folder:
        journal = writer.Journal(folder, "f" * 64)
        for row, output in enumerate(outputs):
            journal.add(row % 2, row // 2, output)
        (tmp_path / ".cdgen-journal-0123456789abcdef-00001.jsonl").write_text("of a corpus that this one replaced")
        journal.end(0)
        journal.close()
        assert [path.name for path in tmp_path.iterdir()] == [f".cdgen-journal-{'f' * 16}-00001.jsonl"]
        assert writer.Journal(folder, "f" * 64).read(()) == {1: {0: outputs[1], 1: outputs[3]}}


def test_a_kill_between_a_shard_and_the_deletion_of_its_journal(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        monkeypatch.setattr(manifests, "write_shard", killed)  # nothing is written after it
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(writer.Journal, "end", killed)
        write(lm, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "data/train-00000.parquet").exists() and list(tmp_path.glob(".cdgen-journal-*-00000.jsonl"))
    before: list[int] = []
    monkeypatch.setattr(Silent, "begin", lambda _, total, done, **options: before.append(done))
    again = decoded(lm, monkeypatch)
    write(lm, tmp_path)
    assert before == [12 - len(again)], "the documents of the first shard count once"
    assert {seed for seed, _ in again} <= {5}
    assert bytes_of(tmp_path) == expected


def test_a_journal_of_an_earlier_version_is_dropped(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (journal,) = crash(lm, tmp_path, monkeypatch, 5)
    journal.rename(tmp_path / journal.name.replace("-00000.jsonl", ".jsonl"))
    again = decoded(lm, monkeypatch)
    write(lm, tmp_path)
    assert len(again) == 12 and bytes_of(tmp_path) == expected
