"""Several tasks write one corpus, each its share of the shards: the result is that of one process, whatever happens."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cdgen import ContrastiveLM, SamplingParams
from cdgen.corpus import manifest as manifests
from cdgen.corpus import parts
from cdgen.corpus.job import CorpusJob
from cdgen.corpus.journal import Journal
from cdgen.corpus.manifest import NAME
from cdgen.corpus.parts import Part, path_of, share
from cdgen.corpus.parts_progress import PartsProgress
from cdgen.corpus.verify import verify
from cdgen.corpus.writer import write_corpus
from cdgen.errors import CorpusError, InputError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.progress import Silent
from tests.helpers.corpora import bytes_of, decoded, numbered_seeds

PARAMS = SamplingParams(n=2, max_tokens=5, ignore_eos=True, seed=3)
SEEDS = numbered_seeds(9)
SHARDS = range(6)  # 18 documents, 3 per shard


class Killed(Exception):
    """Stands for kill -9."""


class KillAfter(Silent):
    """Ends the process after some documents."""

    def __init__(self, documents: int) -> None:
        self.left = documents

    def advance(self, units: int) -> None:
        self.left -= units
        if not self.left:
            raise Killed


@pytest.fixture(scope="module")
def lm(folders: dict[str, Path]) -> ContrastiveLM:
    return ContrastiveLM(folders["good"], folders["bad"], max_num_seqs=4)


@pytest.fixture(scope="module")
def expected(lm: ContrastiveLM, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of a corpus that one process has written."""
    out = tmp_path_factory.mktemp("expected")
    write(lm, out)
    return bytes_of(out)


def write(lm: ContrastiveLM, out: Path, params: SamplingParams = PARAMS, **options: Any) -> int:
    with OutputFolder(out) as folder:
        return write_corpus(lm, SEEDS, folder, params, shard_size=3, split_documents=True, **options)[1]


def run_task(
    lm: ContrastiveLM, out: Path, task: int, tasks: int, shards: Sequence[int] = SHARDS, **options: Any
) -> int:
    """Write the share of a task; return the number of new shards."""
    params = options.pop("params", PARAMS)
    part = Part(out, share(shards, task, tasks))
    with OutputFolder(path_of(out, task)) as folder:
        return write_corpus(lm, SEEDS, folder, params, shard_size=3, split_documents=True, part=part, **options)[1]


def finish(out: Path) -> manifests.Manifest:
    with OutputFolder(out) as folder:
        manifest = parts.finish(folder)
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_any_number_of_tasks_writes_the_same_files(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, tasks: int
) -> None:
    written = [run_task(lm, tmp_path, task, tasks) for task in reversed(range(tasks))]
    assert sum(written) == len(SHARDS) and max(written) - min(written) <= 1
    assert not any(json.loads((path / NAME).read_text())["complete"] for path in parts.part_folders(tmp_path))
    assert finish(tmp_path)["complete"]
    assert bytes_of(tmp_path) == expected


@pytest.mark.parametrize("tasks", [None, 1, 3])
def test_killed_tasks_are_resumed_by_another_number_of_tasks(
    lm: ContrastiveLM,
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: int | None,
) -> None:
    """No finished document is decoded again, although shards move to other tasks, or back to one process."""
    for task in range(2):
        with pytest.raises(Killed):
            run_task(lm, tmp_path, task, 2, progress=KillAfter(4))
    seen = decoded(lm, monkeypatch)
    if tasks is None:
        write(lm, tmp_path)
    else:
        with OutputFolder(tmp_path) as folder:
            parts.gather(folder)
            assert parts.part_folders(tmp_path) == []
            found = manifests.check_folder(folder)
            assert found is not None and 1 <= len(found["shards"]) < len(SHARDS)
            missing = sorted({*SHARDS} - {shard["number"] for shard in found["shards"]})
            parts.distribute(folder, missing, tasks)
        for task in range(tasks):
            run_task(lm, tmp_path, task, tasks, missing)
        assert finish(tmp_path)["complete"]
    assert bytes_of(tmp_path) == expected
    assert len(set(seen)) == len(seen) == len(SEEDS) * PARAMS.n - 2 * 4


def test_a_merge_that_is_killed_is_resumed(
    lm: ContrastiveLM, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the manifest was written, after some files were moved, and before a part was removed."""
    for task in range(2):
        run_task(lm, tmp_path, task, 2)
    adopt, remove = OutputFolder.adopt, OutputFolder.remove

    def killed(*_: Any) -> None:
        raise Killed

    def first_file(self: OutputFolder, names: Any, source: OutputFolder) -> None:
        adopt(self, list(names)[:1], source)
        raise Killed

    for method, fault in (("adopt", killed), ("adopt", first_file), ("remove", killed)):
        monkeypatch.setattr(OutputFolder, method, fault)
        with pytest.raises(Killed):
            finish(tmp_path)
        monkeypatch.setattr(OutputFolder, "adopt", adopt)
        monkeypatch.setattr(OutputFolder, "remove", remove)
        assert not json.loads((tmp_path / NAME).read_text())["complete"]
    assert finish(tmp_path)["complete"]
    assert bytes_of(tmp_path) == expected


@pytest.mark.parametrize("damage", ["truncated", "not listed"])
def test_a_half_written_file_is_never_merged(lm: ContrastiveLM, tmp_path: Path, damage: str) -> None:
    run_task(lm, tmp_path, 0, 2)
    part = path_of(tmp_path, 0)
    (part / f".cdgen-{'0' * 16}-data-train-00001.parquet").write_bytes(b"half")  # left by kill -9
    shard = part / "data" / ("train-00002.parquet" if damage == "truncated" else "train-00005.parquet")
    shard.write_bytes(b"half")
    with OutputFolder(tmp_path) as folder, pytest.raises(CorpusError, match=f"{shard.name}: is ") as caught:
        parts.gather(folder)
    assert "truncated or altered" in str(caught.value) or "no manifest lists it" in str(caught.value)
    assert not (tmp_path / "data").exists()
    shard.unlink()
    manifest = finish(tmp_path)
    assert not manifest["complete"] and manifest["counts"]["shards"] == (2 if damage == "truncated" else 3)
    assert {path.name for path in tmp_path.iterdir()} == {NAME, "_documents", "data"}


def test_a_task_that_runs_again_writes_only_what_is_missing(lm: ContrastiveLM, tmp_path: Path) -> None:
    """What a scheduler recorded about the task does not matter, and shards that were merged are not written again."""
    assert run_task(lm, tmp_path, 0, 2) == 3 and run_task(lm, tmp_path, 0, 2) == 0
    (path_of(tmp_path, 0) / "data/train-00002.parquet").unlink()
    assert run_task(lm, tmp_path, 0, 2) == 1
    assert len(finish(tmp_path)["shards"]) == 3
    assert run_task(lm, tmp_path, 0, 2) == 0
    (tmp_path / "data/train-00002.parquet").unlink()
    assert run_task(lm, tmp_path, 0, 2) == 1


@pytest.mark.parametrize("name", [NAME, "data/train-00009.parquet"])
def test_a_damaged_part_is_named_with_its_remedy(lm: ContrastiveLM, tmp_path: Path, name: str) -> None:
    run_task(lm, tmp_path, 0, 2)
    part = path_of(tmp_path, 0)
    (part / name).write_bytes(b"{")
    with pytest.raises(CorpusError, match=rf"{name}: .* delete {part}, whose shards are then written again$"):
        finish(tmp_path)
    shutil.rmtree(part)
    run_task(lm, tmp_path, 0, 2)
    assert len(finish(tmp_path)["shards"]) == 3


def test_a_task_that_runs_after_the_merge_leaves_nothing(folders: dict[str, Path], tmp_path: Path) -> None:
    """A scheduler may start a task again at any time."""
    (tmp_path / "seeds.txt").write_text("The fox\n")
    reading = {"field": "text", "prefix_tokens": None, "chunk_words": None, "parse_special": False}
    models = {"good": folders["good"], "bad": folders["bad"]}
    job = CorpusJob(str(tmp_path / "out"), models, [str(tmp_path / "seeds.txt")], reading, SamplingParams(max_tokens=2))
    assert job.write_share([0], 0, 1)[1] == 1
    assert finish(tmp_path / "out")["complete"]
    before = bytes_of(tmp_path / "out")
    assert job.write_share([0], 0, 1)[1] == 0
    assert verify(tmp_path / "out").faults == [] and bytes_of(tmp_path / "out") == before


def test_a_document_is_shown_once(lm: ContrastiveLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if it is in a shard, and in the shard's journal, which has not been deleted yet."""
    monkeypatch.setattr(Journal, "end", lambda self, shard: None)
    run_task(lm, tmp_path, 0, 2)
    assert PartsProgress(tmp_path, Silent()).documents == 9


def test_settings_are_those_of_the_corpus(lm: ContrastiveLM, tmp_path: Path) -> None:
    run_task(lm, tmp_path, 0, 2)
    finish(tmp_path)
    with pytest.raises(InputError, match=r"was started with alpha = 0\.1, but now alpha = 0\.2"):
        run_task(lm, tmp_path, 1, 2, params=SamplingParams(n=2, max_tokens=5, ignore_eos=True, seed=3, alpha=0.2))
    assert write(lm, tmp_path, resume=False) == len(SHARDS)


def test_a_new_corpus_discards_the_parts_of_the_old_one(lm: ContrastiveLM, tmp_path: Path) -> None:
    """Even if their files are damaged."""
    run_task(lm, tmp_path, 0, 2)
    (path_of(tmp_path, 0) / "data/train-00002.parquet").write_bytes(b"half")
    assert write(lm, tmp_path, SamplingParams(max_tokens=2), resume=False) == 3
    assert parts.part_folders(tmp_path) == [] and not (tmp_path / parts.FOLDER).exists()


def test_a_part_that_is_being_written_is_left_alone(lm: ContrastiveLM, tmp_path: Path) -> None:
    run_task(lm, tmp_path, 0, 2)
    for function in (parts.gather, parts.discard):
        busy = pytest.raises(CorpusError, match=r"_tasks/00000: another process is writing to this folder")
        with OutputFolder(tmp_path) as folder, OutputFolder(path_of(tmp_path, 0)), busy:
            function(folder)
    assert len(list(path_of(tmp_path, 0).glob("data/*"))) == 3
