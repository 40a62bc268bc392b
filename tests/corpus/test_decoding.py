"""Documents flow across shards: which are decoded together, when shards are written, and what stops decoding."""

import gc
import json
import shutil
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus import manifest as manifests
from cdgen.corpus.decoding import Pairs
from cdgen.corpus.writer import _ShardWriter, write_corpus
from cdgen.engine.outputs import CompletionOutput
from cdgen.errors import CorpusError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import Silent
from tests.helpers.corpora import bytes_of, decoded, finish_in_order, numbered_seeds

LIMIT = 60  # seconds after which a test that waits for a thread fails
PARAMS = SamplingParams(n=2, max_tokens=6)


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=4)


def write(lm: ContrastiveLM, out: Path, shard_size: int, **options: Any) -> tuple[Manifest, int]:
    """Write twelve documents."""
    with OutputFolder(out) as folder:
        return write_corpus(lm, numbered_seeds(6), folder, PARAMS, shard_size=shard_size, **options)


def calls(lm: ContrastiveLM, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, int]]]:
    """Return a list to which the sequences of each call that decodes are added from now on."""
    found: list[list[tuple[int, int]]] = []
    decode = lm.continue_sequences

    def spy(prompts: Any, sequences: Any, params: Any, **callbacks: Any) -> None:
        found.append(list(sequences))
        decode(prompts, sequences, params, **callbacks)

    monkeypatch.setattr(lm, "continue_sequences", spy)
    return found


def test_pairs_are_computed_from_runs_of_rows() -> None:
    pairs, expected = Pairs([range(2, 5), range(9, 10), range(20, 22)], 4), [(0, 2), (0, 3), (1, 0), (2, 1), (5, 0)]
    expected.append((5, 1))
    assert len(pairs) == 6 and list(pairs) == [pairs[at] for at in range(6)] == expected
    assert pairs[1:5] == expected[1:5] and pairs[-1] == expected[-1] and not Pairs([], 4)
    assert [pairs.row(at) for at in range(6)] == [2, 3, 4, 9, 20, 21]
    with pytest.raises(IndexError):
        pairs[6]


def test_missing_shards_are_decoded_as_one_stream(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = calls(lm, monkeypatch)
    write(lm, tmp_path, 3)
    assert found == [[divmod(row, 2) for row in range(12)]]
    for number in (0, 2):
        (tmp_path / f"data/train-{number:05d}.parquet").unlink()
    assert write(lm, tmp_path, 3)[1] == 2
    assert found[1:] == [[divmod(row, 2) for row in (0, 1, 2, 6, 7, 8)]]


def test_a_static_batch_never_spans_two_shards(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The noise of its BAD depends on the batch. A deleted shard is written again with the same bytes."""
    static = ContrastiveLM(folders["good"], dropout=0.5, max_num_seqs=4)
    static.static_reason = "for this test"
    found = calls(static, monkeypatch)
    write(static, tmp_path, 5, split_documents=True)
    assert found == [[divmod(row, 2) for row in rows] for rows in (range(5), range(5, 10), range(10, 12))]
    before = bytes_of(tmp_path)
    (tmp_path / "data/train-00001.parquet").unlink()
    write(static, tmp_path, 5, split_documents=True)
    assert found[3:] == [[divmod(row, 2) for row in range(5, 10)]] and bytes_of(tmp_path) == before


def test_shards_may_finish_in_any_order(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write(lm, tmp_path / "expected", 5, split_documents=True)
    notes: list[str] = []
    monkeypatch.setattr(Silent, "note", lambda _, text: notes.append(text.partition(":")[0]))
    finish_in_order(lm, monkeypatch, lambda row: -row)
    manifest, _ = write(lm, tmp_path / "out", 5, split_documents=True)
    assert notes == [f"data/train-0000{number}.parquet" for number in (2, 1, 0)]
    assert [shard["number"] for shard in manifest["shards"]] == [0, 1, 2]
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "expected")


class Watching(Silent):
    """Calls a function with the number of finished documents when another one finishes."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self._call, self._count = call, 0

    def advance(self, units: int) -> None:
        self._count += units
        self._call(self._count)


def test_decoding_continues_while_a_shard_is_written(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first shard is not written before all documents of the second are finished."""
    later, write_shard = threading.Event(), manifests.write_shard

    def waiting(*arguments: Any, **options: Any) -> None:
        assert later.wait(LIMIT), "decoding waits for the first shard"
        write_shard(*arguments, **options)

    monkeypatch.setattr(manifests, "write_shard", waiting)
    progress = Watching(lambda count: later.set() if count == 12 else None)
    assert write(lm, tmp_path, 6, progress=progress)[1] == 2


def test_outputs_are_dropped_once_their_shard_is_written(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: list[weakref.ref[CompletionOutput]] = []
    alive: list[int] = []
    decode = lm.continue_sequences

    def spy(prompts: Any, sequences: Any, params: Any, on_finished: Any, on_tokens: Any) -> None:
        def finished(at: int, output: CompletionOutput) -> None:
            outputs.append(weakref.ref(output))
            on_finished(at, output)
            if len(outputs) == 12:
                gc.collect()
                alive.append(sum(each() is not None for each in outputs))

        decode(prompts, sequences, params, on_finished=finished, on_tokens=on_tokens)

    monkeypatch.setattr(lm, "continue_sequences", spy)
    write(lm, tmp_path, 1)
    assert alive and alive[0] <= 4, "two shards wait for the thread, and a few documents are on their way"


def full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("harm", ["full", "in the way"])
def test_a_shard_that_cannot_be_written_ends_the_run(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """The second of six shards fails: the disk is full, or a file has the name of the folder."""
    write(lm, tmp_path / "expected", 2)
    out, write_shard, tries, finished = tmp_path / "out", manifests.write_shard, [], []

    def failing(*arguments: Any, **options: Any) -> None:
        tries.append(threading.current_thread())
        with monkeypatch.context() as patched:
            if len(tries) == 2 and harm == "full":
                patched.setattr("cdgen.storage.folder.os.fsync", full)
            elif len(tries) == 2:
                shutil.rmtree(out / "data")
                (out / "data").write_text("mine")
            write_shard(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(manifests, "write_shard", failing)
        message = {"full": "out: cannot be written: No space left on device", "in the way": "data: cannot be written"}
        with pytest.raises(CorpusError, match=message[harm]):
            write(lm, out, 2, progress=Watching(finished.append))
    assert len(tries) >= 2 and len(finished) < 12, "the run must end before everything is decoded"
    assert not any(thread.is_alive() for thread in tries)
    if harm == "full":
        assert len(json.loads((out / manifests.NAME).read_text())["shards"]) == len(list(out.glob("data/*"))) >= 1
    else:
        (out / "data").unlink()
    again = decoded(lm, monkeypatch)
    write(lm, out, 2)
    assert bytes_of(out) == bytes_of(tmp_path / "expected")
    assert len(again) == 12 - len(finished) + (2 if harm == "in the way" else 0), "only the lost shard is decoded again"


class NoFiles:
    """Stands for the files and the journal of a shard."""

    def make(self, number: int, outputs: Any) -> tuple[dict[str, Any], dict[str, bytes]]:
        return {"number": number, "name": "", "rows": 0, "new_tokens": 0}, {}

    def end(self, number: int) -> None:
        pass


def test_a_shard_that_could_not_be_written_is_not_listed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[list[int]] = []

    def write_shard(folder: Any, manifest: Any, done: dict[int, Any], files: Any, complete: bool) -> None:
        listed.append(sorted(done))
        if len(listed) == 1:
            full()

    monkeypatch.setattr(manifests, "write_shard", write_shard)
    monkeypatch.setattr("cdgen.corpus.writer.card.write", lambda folder, manifest: None)
    nothing: Any = NoFiles()
    shard_writer = _ShardWriter(nothing, {}, {}, 3, 0, nothing, nothing)
    with pytest.raises(OSError, match="No space left"):
        shard_writer.write(0, [])
    shard_writer.write(1, [])
    assert listed == [[0], [1]]


def test_an_interrupt_completes_the_shard_that_is_being_written(
    lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(lm, tmp_path / "expected", 2)
    out, write_shard, started = tmp_path / "out", manifests.write_shard, threading.Event()

    def starting(*arguments: Any, **options: Any) -> None:
        started.set()
        write_shard(*arguments, **options)

    def interrupt(finished: int) -> None:
        if finished == 3:
            assert started.wait(LIMIT)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(manifests, "write_shard", starting)
        write(lm, out, 2, progress=Watching(interrupt))
    assert len(list(out.glob("data/*"))) == 1
    again = decoded(lm, monkeypatch)
    write(lm, out, 2)
    assert len(again) == 9 and bytes_of(out) == bytes_of(tmp_path / "expected")
