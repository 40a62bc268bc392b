"""Run jobs as processes, so that a crash, a hang or a broken CUDA context ends one job and no other."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu import records
from benchmarks.gpu.parts import Job

ROOT = Path(__file__).resolve().parents[2]
POLL = 0.05  # seconds
KILL_TIMEOUT = 10  # seconds to wait for a killed process
OUTPUT_TAIL = 2000  # characters of a failed job's output that are kept
PR_SET_PDEATHSIG = 1  # see prctl(2)
NOT_INHERITED = ("CDGEN_IMPL", "TRITON_INTERPRET")  # variables that would change which code is measured


def end_with_parent(parent: int) -> None:
    """Have the operating system kill this process when its parent dies, so that it does not keep the GPU busy."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has died already
        os._exit(1)


@contextmanager
def environment() -> Iterator[tuple[dict[str, str], Path]]:
    """Yield environment variables for the jobs, and a temporary folder to run them in.

    Jobs can import both packages from a checkout that is not installed, and write nothing to it.
    """
    with tempfile.TemporaryDirectory(prefix="cdgen-gpu-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        path = [str(ROOT / "kernels"), str(ROOT), os.environ.get("PYTHONPATH", "")]
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED}
        yield (
            inherited
            | {
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                "PYTHONDONTWRITEBYTECODE": "1",
                "HYPOTHESIS_STORAGE_DIRECTORY": str(folder / "hypothesis"),
                "HF_HUB_OFFLINE": "1",
            },
            folder,
        )


@dataclass
class Runner:
    """Runs jobs one after another or several at once, and records how each ended.

    Args:
        out: the results file.
        seconds: time budget from now on. A job that does not fit is recorded as dropped.
        options: command line options of every job.
        variables: environment variables of the jobs. folder: their working folder.
    """

    out: Path
    seconds: float
    options: list[str]
    variables: dict[str, str]
    folder: Path

    def __post_init__(self) -> None:
        self._end = time.monotonic() + self.seconds
        self._running: list[_Process] = []

    def run(self, jobs: Iterable[Job], at_once: int = 1) -> None:
        """Run the jobs, up to `at_once` at the same time."""
        waiting = deque(jobs)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < at_once:
                    self._start(waiting.popleft())
                time.sleep(POLL)
                self._running = [process for process in self._running if not self._has_ended(process)]
        finally:  # also after an interrupt
            for process in self._running:
                process.kill()

    def note(self, job: Job, kind: str, **fields: object) -> None:
        """Record what happened to a job."""
        try:
            records.append(self.out, {"part": job.part, "job": job.name, "kind": kind} | fields)
        except OSError as error:  # a full disk must not end the run: its printed lines are still useful
            print(f"{self.out}: cannot be written: {error.strerror}", flush=True)

    def _start(self, job: Job) -> None:
        left = self._end - time.monotonic()
        if left < job.expected:
            self.note(job, "dropped", left=round(left, 1), expected=job.expected)
            print(f"{job.part} {job.name}: dropped, only {max(left, 0):.0f} s left", flush=True)
            return
        limit = min(job.limit, left)
        self.note(job, "started", limit=limit)
        self._running.append(_Process(job, limit, self))

    def _has_ended(self, process: "_Process") -> bool:
        status = process.popen.poll()
        if status is None and time.monotonic() < process.deadline:
            return False
        job, seconds = process.job, round(time.monotonic() - process.started, 1)
        if status is None:
            gone = process.kill()
            self.note(job, "timed_out", limit=process.limit, gone=gone, output=process.output())
        else:
            process.kill()  # other processes of its group may still run
            self.note(job, "ended", exit=status, seconds=seconds, **({"output": process.output()} if status else {}))
        done, missing = process.progress()
        if missing:
            self.note(job, "not_run", names=missing)
        outcome = "timed out" if status is None else "ended" if status == 0 else f"FAILED with exit status {status}"
        rest = f", {len(missing)} not run" if missing else ""
        print(f"{job.part} {job.name}: {outcome} after {seconds} s, {done} results{rest}", flush=True)
        return True


class _Process:
    """A job that runs in a process group of its own."""

    def __init__(self, job: Job, limit: float, runner: Runner) -> None:
        self.job, self.limit, self._out = job, limit, runner.out
        self._from = runner.out.stat().st_size
        self._log = tempfile.TemporaryFile(dir=runner.folder)  # noqa: SIM115, open until the job ends
        self.started = time.monotonic()  # all processes of a machine share this clock
        self.deadline = self.started + limit
        command = [sys.executable, "-m", "benchmarks.gpu.job", job.module, job.name, "--part", job.part]
        command += ["--out", str(runner.out), "--seconds", str(limit), "--started", str(self.started), *runner.options]
        command += ["--parent", str(os.getpid())]
        self.popen = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=runner.folder,
            env=runner.variables,
            start_new_session=True,
        )

    def kill(self) -> bool:
        """Kill the whole process group. Return whether the process is gone; one that hangs in the driver may stay."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        try:
            self.popen.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            return False
        return True

    def output(self) -> str:
        """Return the end of what the job printed."""
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - OUTPUT_TAIL))
        return self._log.read().decode(errors="replace")

    def progress(self) -> tuple[int, list[str]]:
        """Return the number of results, and the names of planned results that are missing."""
        planned: list[str] = []
        done: set[str] = set()
        for record in records.read(self._out, self._from):
            if (record.get("part"), record.get("job")) == (self.job.part, self.job.name):
                planned += record["names"] if record["kind"] == "planned" else []
                done |= {record["name"]} if record["kind"] == "result" else set()
        return len(done), [name for name in planned if name not in done]
