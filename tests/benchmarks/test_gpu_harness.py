"""The harness of the GPU run: whatever a job does, the results of all other jobs are complete."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import records, summary
from benchmarks.gpu.machine import machine
from benchmarks.gpu.parts import PARTS, Job

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

FAKE_JOBS = """
import os, signal, subprocess, sys, time

from benchmarks.gpu import context as contexts

def two_cases(context):
    context.plan(["first", "second"])
    with context.case("first") as found:
        found["line"] = "the first figure"

def fine(context):
    two_cases(context)
    with context.case("second"):
        assert context.left < 59.5 and context.seconds == 60  # importing torch counts

def crash(context):
    two_cases(context)
    os.kill(os.getpid(), signal.SIGSEGV)

def hang(context):
    two_cases(context)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.record("note", child=child.pid)
    time.sleep(600)

def garbage(context):
    two_cases(context)
    sys.stdout.buffer.write(bytes(range(256)) * 10)
    with open(context.out, "ab") as file:
        file.write(b'{"part": "fake", "job": "garb')
    with context.case("second"):
        pass

def raises(context):
    two_cases(context)
    with context.case("second"):
        raise RuntimeError("no such instruction\\nmore")
    with context.case("third"):
        pass

def broken(context):
    contexts.Context._is_broken = lambda context: True
    two_cases(context)
    with context.case("second"):
        raise RuntimeError("an illegal memory access was encountered")
    with context.case("third"):
        pass

def wrong(context):
    with context.case("only") as found:
        found |= {"status": "wrong", "failure": "3 of 8 rows differ"}

def sleeps(context):
    context.record("note", child=os.getpid())
    time.sleep(600)

JOBS = {f.__name__: f for f in (fine, crash, hang, garbage, raises, broken, wrong, sleeps)} | {"dropped": fine}
"""
EXPECTED = {"dropped": 1e9}
LIMITS = {"hang": 8}
EARLIER = '{"kind": "machine", "of": "an earlier run"}\n'


def fake_jobs(*names: str) -> dict[str, tuple[Job, ...]]:
    return {"fake": tuple(Job("fake", n, "fake_gpu_jobs", EXPECTED.get(n, 0), LIMITS.get(n, 60)) for n in names)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Create a folder with the fake jobs, from which the processes of a run can import them."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "fake_gpu_jobs.py").write_text(FAKE_JOBS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        patch.setattr(gpu, "machine", lambda variables: {"part": "", "job": "", "kind": "machine"} | ABOUT)
        yield folder


ABOUT = {"torch": {"available": False}, "nvidia-smi": None, "versions": {}, "commit": "unknown"}


class Run(NamedTuple):
    """A run of fake jobs."""

    status: int
    found: list[records.Record]
    out: Path


def run(out: Path, *names: str) -> Run:
    """Run fake jobs."""
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    start = out.stat().st_size if out.exists() else 0
    status = gpu.main(["--dry-run", "--out", str(out)], fake_jobs(*names))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before
    return Run(status, list(records.read(out, start)), out)


@pytest.fixture(scope="module")
def failing_run(folder: Path) -> Run:
    """Run jobs that fail in all possible ways, with a results file that exists already."""
    out = folder / "failing.jsonl"
    out.write_text(EARLIER)
    names = ("hang", "fine", "crash", "garbage", "raises", "broken", "wrong", "dropped")
    return run(out, *names)


def select(found: list[records.Record], job: str, kind: str) -> list[records.Record]:
    """Return the records of one kind that one job wrote."""
    return [record for record in found if record["job"] == job and record["kind"] == kind]


def statuses(found: list[records.Record], job: str) -> dict[str, str]:
    """Return the status of every result of a job."""
    return {record["name"]: record["status"] for record in select(found, job, "result")}


def test_a_run_whose_jobs_fail_has_exit_status_1(failing_run: Run) -> None:
    assert failing_run.status == 1


def test_a_run_without_failures_has_exit_status_0(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, found, _ = run(tmp_path / "out.jsonl", "fine", "dropped")
    assert status == 0
    assert found[0]["kind"] == "machine" and found[0]["dry"] is True
    assert all(record["time"].endswith("+00:00") for record in found)
    out = capsys.readouterr().out
    assert "fake fine: ended after" in out and "fake          2 ok, 1 dropped" in out
    *_, dropped, results = out.rstrip().splitlines()
    assert dropped == "INCOMPLETE, dropped for lack of time: fake dropped"
    assert results == f"results: {tmp_path / 'out.jsonl'}"


def test_results_are_appended(failing_run: Run) -> None:
    assert failing_run.out.read_text().startswith(EARLIER)


def test_a_job_among_failing_ones_is_complete(failing_run: Run) -> None:
    found = failing_run.found
    assert statuses(found, "fine") == {"first": "ok", "second": "ok"}
    assert next(record["kind"] for record in found if record["job"] == "fine") == "started"
    assert select(found, "fine", "ended")[0]["exit"] == 0 and not select(found, "fine", "not_run")


def test_a_crash_keeps_earlier_results_and_names_missing_ones(failing_run: Run) -> None:
    found = failing_run.found
    assert statuses(found, "crash") == {"first": "ok"}
    (ended,) = select(found, "crash", "ended")
    assert ended["exit"] == -signal.SIGSEGV and "Segmentation fault" in ended["output"]
    assert select(found, "crash", "not_run")[0]["names"] == ["second"]


def test_a_job_that_hangs_is_killed_with_its_children(failing_run: Run) -> None:
    found = failing_run.found
    (ended,) = select(found, "hang", "timed_out")
    assert ended["limit"] == 8 and ended["gone"] and "in hang" in ended["output"]
    assert statuses(found, "hang") == {"first": "ok"}
    assert select(found, "hang", "not_run")[0]["names"] == ["second"]
    assert has_ended(select(found, "hang", "note")[0]["child"])


def has_ended(process: int, timeout: float = 5.0) -> bool:
    """Return whether a process ends within `timeout` seconds."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # ended, but its parent has not read the exit status
            return True
        time.sleep(0.05)
    return False


def test_garbage_in_the_file_spoils_no_record(failing_run: Run) -> None:
    _, found, out = failing_run
    assert statuses(found, "garbage") == {"first": "ok", "second": "ok"}
    bad = [line for line in out.read_text().splitlines() if line and not line.endswith("}")]
    assert bad == ['{"part": "fake", "job": "garb']


def test_an_exception_fails_only_its_case(failing_run: Run) -> None:
    found = failing_run.found
    assert statuses(found, "raises") == {"first": "ok", "second": "failed", "third": "ok"}
    record = select(found, "raises", "result")[1]
    assert record["failure"] == "RuntimeError: no such instruction" and "in raises" in record["traceback"]
    assert select(found, "raises", "ended")[0]["exit"] == 0


def test_a_broken_device_ends_the_job(failing_run: Run) -> None:
    found = failing_run.found
    assert statuses(found, "broken") == {"first": "ok", "second": "failed"}
    assert select(found, "broken", "ended")[0]["exit"] == 3


def test_a_job_that_does_not_fit_the_budget_is_recorded_as_dropped(failing_run: Run) -> None:
    found = failing_run.found
    assert [record["kind"] for record in found if record["job"] == "dropped"] == ["dropped"]
    assert "INCOMPLETE, dropped for lack of time: fake dropped" in summary.summary(found)


def test_a_run_without_results_has_exit_status_1(folder: Path, tmp_path: Path) -> None:
    status, found, _ = run(tmp_path / "out.jsonl", "dropped")
    assert status == 1 and [record["kind"] for record in found] == ["machine", "dropped"]


def test_missing_results_are_a_failure() -> None:
    result = {"part": "fake", "job": "x", "kind": "result", "name": "a", "status": "ok"}
    assert not summary.has_failed([result])
    assert summary.has_failed([result, {"part": "fake", "job": "x", "kind": "not_run", "names": ["b"]}])


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (["--seconds", "0"], "--seconds 0: must be more than 0"),
        (["--seconds", "nan"], "--seconds nan: must be more than 0"),
        (["--parts", "kernls"], "--parts: kernls: use check, end_to_end"),
        (["--out", "/proc/none/x"], "--out /proc/none/x: cannot be written: No such file"),
        (["--out", "."], "--out .: cannot be written: Is a directory"),
    ],
)
def test_invalid_options_are_reported_in_one_line(
    options: list[str], error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        gpu.main(options)
    assert stop.value.code == 2 and error in capsys.readouterr().err


def test_jobs_do_not_inherit_variables_that_change_the_measured_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDGEN_IMPL", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with gpu.environment() as (variables, _):
        assert not {"CDGEN_IMPL", "TRITON_INTERPRET"} & variables.keys()
        assert machine(variables)["environment"]["CUDA_VISIBLE_DEVICES"] == ""


def test_each_failure_has_a_line_in_the_summary(failing_run: Run) -> None:
    found = failing_run.found
    lines = summary.summary(found).splitlines()
    assert "    the first figure" in lines
    assert "fake wrong: wrong: only: 3 of 8 rows differ" in lines
    assert "fake raises: failed: second: RuntimeError: no such instruction" in lines
    assert any(line.startswith("fake hang: timed out after 8 s") for line in lines)
    assert any(line.startswith("fake crash: exit status -11") for line in lines)
    counts = next(line for line in lines if line.startswith("fake  "))
    assert "9 ok, 1 wrong, 2 failed, 2 crashed, 1 timed out, 2 not run, 1 dropped" in counts


def test_the_summary_is_always_short() -> None:
    result = {"part": "check", "job": "contrastive_sample", "kind": "result", "line": "x" * 500}
    bad = result | {"name": "n" * 300, "status": "failed", "failure": "f" * 300}
    text = summary.summary([bad] * 500)
    assert len(text) < 12_000 and "and 475 more failures" in text
    assert f"and {500 - summary.FIGURES} more lines" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL], ids=str)
def test_the_jobs_of_an_interrupted_run_end_with_it(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    """A lost connection sends SIGHUP. After SIGKILL there is no summary, but no job keeps the GPU busy either."""
    out = tmp_path / "out.jsonl"
    code = textwrap.dedent(
        f"""
        import sys
        from benchmarks.gpu import __main__ as gpu
        from benchmarks.gpu.parts import Job
        gpu.machine = lambda variables: {{"part": "", "job": "", "kind": "machine"}} | {ABOUT!r}
        jobs = {{"fake": (Job("fake", "sleeps", "fake_gpu_jobs", 0, 60),)}}
        sys.exit(gpu.main(["--dry-run", "--out", {str(out)!r}], jobs))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while not (started := select(list(records.read(out)), "sleeps", "note")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(number)
    printed = process.communicate(timeout=20)[0]
    if number != signal.SIGKILL:
        assert process.returncode == 1 and "part          results" in printed
    assert has_ended(started[0]["child"])


def test_the_parent_imports_neither_torch_nor_triton() -> None:
    code = "import benchmarks.gpu.__main__, sys; sys.exit(any(name in sys.modules for name in ('torch', 'triton')))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_machine_record() -> None:
    found = machine(dict(os.environ))
    assert found["torch"]["available"] == torch.cuda.is_available()
    assert found["versions"]["torch"] and found["python"] and found["command"]
    json.dumps(found)


def test_jobs_import_packages_that_are_not_installed() -> None:
    with gpu.environment() as (variables, folder):
        code = "import cdgen_kernels.ops, cdgen, benchmarks.gpu; print(cdgen_kernels.__path__)"
        command = [
            sys.executable,
            "-I",
            "-c",
            f"import sys; sys.path[:0] = {variables['PYTHONPATH'].split(':')}; {code}",
        ]
        printed = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert f"'{ROOT}/kernels/cdgen_kernels'" in printed


def test_a_job_in_its_own_process(folder: Path, tmp_path: Path) -> None:
    status = gpu.main(
        ["--dry-run", "--parts", "check", "--out", str(tmp_path / "out.jsonl")], {"check": PARTS["check"][:1]}
    )
    assert status == 0 and statuses(list(records.read(tmp_path / "out.jsonl")), "noise") == {"noise": "ok"}


def test_tests_are_recorded_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "test_five.py").write_text(
        "import os, pytest\n"
        "def test_a(): pass\n"
        "def test_b(): assert 1 == 2, 'one is not two'\n"
        "def test_c(): pytest.skip()\n"
        "def test_d(): os._exit(9)\n"
        "def test_e(no_such_fixture): pass\n"
    )
    for shard, names in (("0 2", "ace"), ("1 2", "bd")):
        out = tmp_path / f"{names}.jsonl"
        variables = {"CDGEN_GPU_RESULTS": str(out), "CDGEN_GPU_JOB": "end_to_end x", "CDGEN_GPU_SHARD": shard}
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "benchmarks.gpu.pytest_records",
        ]
        with gpu.environment() as (environment, _):
            subprocess.run([*command, str(tmp_path)], cwd=tmp_path, env=environment | variables, check=False)
        found = list(records.read(out))
        assert [name[-1] for name in select(found, "x", "planned")[0]["names"]] == list(names)
        results = {name[-1]: status for name, status in statuses(found, "x").items()}
        assert results == ({"a": "ok", "c": "skipped", "e": "failed"} if names == "ace" else {"b": "failed"})
    assert "one is not two" in select(found, "x", "result")[0]["failure"]


def test_a_skipped_test_is_not_a_failure() -> None:
    skipped = {"part": "end_to_end", "job": "x", "kind": "result", "name": "test_c", "status": "skipped"}
    assert not summary.has_failed([skipped])
    assert "0 ok, 1 skipped" in summary.summary([skipped])
    assert summary.has_failed([skipped | {"status": "failed"}])
