"""`ContrastiveGenerate` in pipelines of datatrove: the rows of `cdgen generate`, whatever tasks fail or are killed."""

import contextlib
import json
import os
import pickle
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

pytest.importorskip("datatrove", reason="datatrove is not installed")

from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from cdgen import SamplingParams, generate_corpus
from cdgen.errors import InputError
from cdgen.integrations.datatrove import ContrastiveGenerate, choose_device
from tests.helpers.tiny_models import SENTENCES

PARAMS = SamplingParams(n=2, max_tokens=6, seed=5)
TEXTS = {f"doc {at}": " ".join(SENTENCES[at % 3].split()[: 2 + at % 4]) for at in range(10)}

Row = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Return id, text and other columns of the rows that the corpus writer writes for TEXTS."""
    from cdgen import ContrastiveLM

    out = tmp_path_factory.mktemp("corpus")
    generate_corpus(ContrastiveLM(folders["good"], folders["bad"]), list(TEXTS.items()), out, PARAMS)
    rows = pq.read_table(out / "data").to_pylist()
    return [(f"{row['seed_id']}#{row['continuation']}", row.pop("text"), row) for row in rows]


def step(folders: dict[str, Path], **options: Any) -> ContrastiveGenerate:
    return ContrastiveGenerate(
        str(folders["good"]), **{"bad": str(folders["bad"]), "params": PARAMS, "max_num_seqs": 4} | options
    )


def seeds(data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
    """Read the seeds of a task: every `world_size`-th one. An empty document is among those of task 0."""
    if rank == 0:
        yield Document(" \n", "empty")
    for name, text in list(TEXTS.items())[rank::world_size]:
        yield Document(text, name, metadata={"source": "test"})


def found(documents: list[Document]) -> list[Row]:
    assert {each.metadata.pop("source") for each in documents} == {"test"}, "the seed's metadata are kept"
    return [(each.id, each.text, each.metadata) for each in documents]


@pytest.mark.parametrize("tasks", [1, 2, 4])
def test_any_number_of_tasks_gives_the_rows_of_a_corpus(
    folders: dict[str, Path], expected: list[Row], monkeypatch: pytest.MonkeyPatch, tasks: int
) -> None:
    monkeypatch.setattr("cdgen.integrations.datatrove._BATCHES", 1)  # two documents per block
    generate = pickle.loads(pickle.dumps(step(folders)))  # as an executor sends it to another machine
    shares = [found(list(generate(seeds(None, rank, tasks), rank, tasks))) for rank in range(tasks)]
    assert [row for share in shares for row in share] == sorted(
        expected, key=lambda row: (int(row[2]["seed_id"].split()[1]) % tasks, expected.index(row))
    )
    assert generate.stats["empty documents"].total == 1
    assert generate.stats["continuations"].total == len(expected)


def test_numbers_as_ids_are_read_as_by_the_corpus_writer(folders: dict[str, Path]) -> None:
    """A reader of JSON lines leaves the id 7 a number."""
    number, text = (list(step(folders)(iter([Document("The fox", name)]))) for name in (7, "7"))
    assert [each.id for each in number] == ["7#0", "7#1"] and number == text
    assert list(step(folders)(iter([Document(None, "a")]))) == []


def test_only_a_block_of_documents_is_in_memory(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cdgen.integrations.datatrove._BATCHES", 1)
    read: list[str] = []

    def endless() -> Iterator[Document]:
        while True:
            read.append(str(len(read)))
            yield Document("The fox", read[-1])

    outputs = step(folders)(endless())
    assert [next(outputs).id for _ in range(4)] == ["0#0", "0#1", "1#0", "1#1"] and len(read) == 2
    next(outputs)
    assert len(read) == 4
    outputs.close()


def test_models_are_loaded_once_per_task_and_not_without_documents(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cdgen import ContrastiveLM

    loaded: list[Any] = []
    monkeypatch.setattr(
        "cdgen.integrations.datatrove.ContrastiveLM", lambda **given: loaded.append(given) or ContrastiveLM(**given)
    )
    monkeypatch.setattr("cdgen.integrations.datatrove._BATCHES", 1)
    assert list(step(folders)(iter([Document("", "empty")]))) == [] and loaded == []
    assert len(list(step(folders)(seeds()))) == 20 and len(loaded) == 1


def test_a_noisy_bad_in_static_batches_does_not_depend_on_the_other_documents(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cdgen.engine.llm.unsupported", lambda module: "for the test")
    generate = step(folders, bad=None, dropout=0.5)
    alone = [row for rank in range(5) for row in found(list(generate(list(seeds(None, rank, 5))[rank == 0 :], rank)))]
    together = found(list(generate(seeds())))
    assert sorted(alone, key=lambda row: row[0]) == sorted(together, key=lambda row: row[0])


def test_wrong_arguments_and_documents_are_named(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="prefix_tokens = 0"):
        step(folders, prefix_tokens=0)
    with pytest.raises(InputError, match="seed long: has more tokens than the"):
        list(step(folders)(iter([Document("fox " * 300, "long")])))
    with pytest.raises(InputError, match="tokenizer: none was found"):
        list(ContrastiveGenerate(str(folders["bare"]), SamplingParams(contrast_strength=0))(seeds()))
    for name, message in (
        (None, "one has no id"),
        ("\ud800", "half of a surrogate pair"),
        ([1], "is not text but list"),
    ):
        with pytest.raises(InputError, match=f"^documents: .*{message}"):
            list(step(folders)(iter([Document("The fox", name)])))
    cut = step(folders, prefix_tokens=2)(iter([Document("The fox " * 300, "long")]))
    assert {each.metadata["prompt_length"] for each in cut} == {2}


def test_each_task_uses_its_own_gpu_and_its_share_of_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: chosen.append(-count))
    for task, device in ((0, None), (5, "cuda"), (1, "cuda:3"), (1, "cpu")):
        choose_device(task, device, None)
    choose_device(0, "cpu", 2)
    assert chosen == [0, 1, -2]


DRIVER = """
import json, sys
from datatrove.executor import {executor}
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from cdgen import SamplingParams
from cdgen.integrations.datatrove import ContrastiveGenerate
from tests.integrations.test_datatrove import Faults

good, bad, root = sys.argv[1:]
if __name__ == "__main__":
    {executor}(
        [
            JsonlReader(root + "/seeds"),
            ContrastiveGenerate(good, SamplingParams(n=2, max_tokens=6, seed=5), bad=bad, max_num_seqs=4, threads=1),
            Faults(root),
            JsonlWriter(root + "/out", output_filename="${{rank}}.jsonl", compression=None),
        ],
        tasks=4,
        workers=2,
        logging_dir=root + "/logs",
        {options}
    ).run()
"""


class Faults(PipelineStep):
    """Kills its process in task 1 and fails in task 2, after some documents, as long as a file asks for it."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self.root = root

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for count, document in enumerate(data):
            if count == 3 and rank == 1 and os.path.exists(f"{self.root}/kill"):
                open(f"{self.root}/killed", "w", encoding="utf-8").close()
                os.kill(os.getpid(), signal.SIGKILL)
            if count == 3 and rank == 2 and os.path.exists(f"{self.root}/kill"):
                while not os.path.exists(f"{self.root}/killed"):  # the executor ends all tasks once one has failed
                    time.sleep(0.01)
                raise RuntimeError("task 2 was made to fail")
            yield document


def pipeline(
    root: Path, folders: dict[str, Path], executor: str = "LocalPipelineExecutor", options: str = ""
) -> Callable[[], "subprocess.CompletedProcess[str]"]:
    """Write seeds in four files and a script that continues them in four tasks; return what runs the script."""
    (root / "seeds").mkdir()
    for task in range(4):
        lines = [json.dumps({"id": name, "text": text}) + "\n" for name, text in list(TEXTS.items())[task::4]]
        (root / f"seeds/{task}.jsonl").write_text("".join(lines), encoding="utf-8")
    script = root / "driver.py"
    script.write_text(DRIVER.format(executor=executor, options=options), encoding="utf-8")
    repository = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(repository), *filter(None, sys.path)])
    command = [sys.executable, str(script), str(folders["good"]), str(folders["bad"]), str(root)]

    def run() -> "subprocess.CompletedProcess[str]":
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=300)
            finally:  # datatrove's helper process survives a worker that was killed
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        return subprocess.CompletedProcess(command, process.returncode, output)

    return run


def read(out: Path) -> list[tuple[str, str]]:
    """Return id and text of all documents, in the order of their ids."""
    lines = [line for path in sorted(out.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    return sorted((each["id"], each["text"]) for each in map(json.loads, lines))


@pytest.mark.slow
def test_a_pipeline_with_a_failed_and_a_killed_task_is_rerun(
    folders: dict[str, Path], expected: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four tasks with two workers. The rerun gives exactly the rows of `cdgen generate`."""
    run = pipeline(tmp_path, folders, options="start_method='fork'")  # faster: each task need not import torch
    (tmp_path / "kill").touch()
    first = run()
    assert first.returncode == 1 and "task 2 was made to fail" in first.stdout, first.stdout
    assert (tmp_path / "killed").exists()
    assert not {"00001", "00002"} & {path.name for path in (tmp_path / "logs/completions").glob("*")}
    (tmp_path / "kill").unlink()
    # In this process, which has imported everything; its two workers are processes as before.
    monkeypatch.setattr(sys, "argv", ["driver.py", str(folders["good"]), str(folders["bad"]), str(tmp_path)])
    runpy.run_path(str(tmp_path / "driver.py"), run_name="__main__")
    assert {path.name for path in (tmp_path / "logs/completions").iterdir()} == {f"{task:05d}" for task in range(4)}
    assert read(tmp_path / "out") == sorted((name, text) for name, text, _ in expected)


@pytest.mark.slow
def test_the_pipeline_runs_on_ray(folders: dict[str, Path], expected: list[Row], tmp_path: Path) -> None:
    """Two of four tasks at a time, on two cores."""
    pytest.importorskip("ray", reason="ray is not installed: pip install ray")
    run = pipeline(tmp_path, folders, "RayPipelineExecutor", "cpus_per_task=1, mem_per_cpu_gb=1")
    outcome = run()
    assert outcome.returncode == 0, outcome.stdout
    assert read(tmp_path / "out") == sorted((name, text) for name, text, _ in expected)


def test_the_local_executor_takes_the_step(folders: dict[str, Path], expected: list[Row], tmp_path: Path) -> None:
    """In this process; what the step holds is written to the executor's JSON file."""
    collected: list[Document] = []

    def keep(data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for document in data:
            collected.append(document)
            yield document

    executor = LocalPipelineExecutor([seeds, step(folders), keep], workers=1, logging_dir=str(tmp_path))
    executor.run()
    assert found(collected) == expected
    assert json.loads((tmp_path / "executor.json").read_text())["pipeline"][1]["params"]["seed"] == 5
