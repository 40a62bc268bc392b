"""Write a corpus with several processes on this machine."""

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from cdgen.corpus import parts
from cdgen.corpus.job import CorpusJob
from cdgen.corpus.parts_progress import PartsProgress
from cdgen.errors import CorpusError, InputError
from cdgen.storage.folder import OutputFolder
from cdgen.storage.manifest import Manifest
from cdgen.storage.progress import ITEMS, Progress

_POLL = 0.2  # seconds


class Task(NamedTuple):
    """What a worker is given.

    Attributes:
        job: the corpus.
        shards: the shards that all workers write.
        number: number of this worker.
        workers: number of all workers.
        threads: CPU threads.
        logs: folder for datatrove's logs and statistics.
    """

    job: CorpusJob
    shards: list[int]
    number: int
    workers: int
    threads: int
    logs: str


def run_workers(
    job: CorpusJob,
    folder: OutputFolder,
    shards: list[int],
    documents: int,
    *,
    workers: int,
    threads: int | None,
    progress: Progress,
) -> Manifest:
    """Write shards of a corpus with worker processes, and merge their parts.

    If a worker fails or is killed, the others finish their work.

    Args:
        job: the corpus.
        folder: its folder, as an entered context, without parts.
        shards: numbers of the missing shards.
        documents: number of documents of the complete corpus.
        workers: number of processes.
        threads: CPU threads of each; default: an equal share of the cores.
        progress: receives the documents that are finished.
    Returns:
        The manifest of the complete corpus.
    Raises:
        InputError, CorpusError: workers have failed; the message is that of the first one.
    """
    parts.distribute(folder, shards, workers)
    logs = parts.log_folder(folder.path)
    threads = threads or max(1, torch.get_num_threads() // workers)
    tasks = [Task(job, shards, number, workers, threads, str(logs / f"{number:05d}")) for number in range(workers)]
    shown = PartsProgress(folder.path, progress)
    left = sum(min(job.shard_size, documents - number * job.shard_size) for number in shards)
    progress.begin(documents, documents - left + shown.documents, unit=ITEMS, verb="to write")
    with _started(tasks, _environments(workers, job.models.get("device"))) as processes:
        while any(process.poll() is None for process in processes):
            time.sleep(_POLL)
            shown.update()
        shown.update()
    manifest = parts.finish(folder)
    failed = [each for each in zip(tasks, processes, strict=True) if each[1].returncode]
    if failed:
        raise _error(*failed[0], len(failed), workers)
    assert manifest is not None and manifest["complete"], "all workers have written their shards"
    return manifest


@contextlib.contextmanager
def _started(tasks: list[Task], environments: list[dict[str, str]]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Start a process for each task; at the end of the context, end those that are left."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for task, environment in zip(tasks, environments, strict=True):
            Path(task.logs).mkdir(parents=True, exist_ok=True)
            with open(_log_of(task), "wb") as log:
                # A session of its own, since datatrove starts a process that would survive a worker that is killed.
                process = subprocess.Popen(
                    [sys.executable, "-m", "cdgen.integrations.datatrove_worker"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, start_new_session=True,
                )  # fmt: skip
            processes.append(process)
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has ended already; its exit code is reported
                pickle.dump(task, process.stdin)
                process.stdin.flush()
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()  # type: ignore[union-attr]


def _environments(workers: int, device: str | None) -> list[dict[str, str]]:
    """Return the environment variables of each worker, which give each a GPU of its own."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    common = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    count = gpu_count(device)
    if not count:
        return [common] * workers
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    names = visible if visible != [""] else [str(number) for number in range(count)]
    return [common | {"CUDA_VISIBLE_DEVICES": names[number]} for number in range(workers)]


def gpu_count(device: str | None) -> int:
    """Return the number of GPUs that a command may use, 0 if it uses the CPU."""
    return 0 if (device or "cuda") != "cuda" else torch.cuda.device_count()


def _log_of(task: Task) -> Path:
    return Path(task.logs) / "worker.log"


def _error(task: Task, process: "subprocess.Popen[bytes]", failed: int, workers: int) -> Exception:
    """Return the error for workers that have failed; `task` and `process` are those of the first one."""
    code = process.returncode
    if code < 0:
        reason = f"it was killed by signal {-code} ({signal.Signals(-code).name})"
    else:
        assert process.stdout is not None
        # The log has no message if the disk is full; the output has none if the worker failed before it had its task.
        lines = (_log_of(task).read_bytes() + b"\n" + process.stdout.read()).decode(errors="replace").split("\n")
        reason = next((line for line in reversed(lines) if line.strip()), "no message")
        if code == 2 and failed == workers:
            return InputError(reason)
    count = f"{failed} of {workers} workers"
    return CorpusError(f"{count} failed: {reason}; see {_log_of(task)}; finished work is kept, rerun to resume")
