"""`cdgen generate --workers` and `--slurm`: the corpus of one process, whatever is killed, and scripts for Slurm."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import CommandLine
from tests.helpers.corpora import bytes_of

pytest.importorskip("datatrove", reason="datatrove is not installed")

from datatrove.tools import launch_pickled_pipeline

from cdgen.corpus.manifest import NAME
from cdgen.errors import InputError
from cdgen.integrations import datatrove_workers
from cdgen.integrations.datatrove_slurm import slurm_arguments

SLURM = ("--slurm-args", "time=1:00:00", "partition=gpu", "cpus_per_task=2", "account=lab")


@pytest.fixture
def argv(folders: dict[str, Path], seeds_file: Path) -> list[Any]:
    """Return a command without its output folder: 100 documents in 10 shards."""
    return [
        "generate", "--good", folders["good"], "--bad", folders["bad"], "--seeds", seeds_file, "--n", 2,
        "--max-tokens", 24, "--shard-size", 10, "--batch-size", 4, "--threads", 1,
    ]  # fmt: skip


def corpus(out: Path) -> dict[str, bytes]:
    """Return the files of a corpus without the logs of its tasks."""
    return {name: content for name, content in bytes_of(out).items() if not name.startswith("_logs/")}


def workers_of(parent: int) -> list[int]:
    """Return the process ids of the workers of a command."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            number, rest = path.read_text(encoding="utf-8").split(" (", 1)
        except OSError:
            continue
        if int(rest.rpartition(")")[2].split()[1]) == parent:
            found.append(int(number))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc, which Linux has")
def test_a_failed_and_a_killed_worker_are_resumed(cdgen_command: CommandLine, argv: list[Any], tmp_path: Path) -> None:
    """Three workers: the file in the way of one makes it fail, and one is killed once it has written a shard."""
    assert cdgen_command(*argv, "--quiet", "--out", tmp_path / "one") == (0, "")
    out = tmp_path / "three"
    (out / "_tasks").mkdir(parents=True)
    (out / "_tasks/00002").touch()
    parent = cdgen_command.start(*argv, "--quiet", "--out", out, "--workers", 3)
    deadline = time.monotonic() + 240
    while not list(out.glob("_tasks/00001/data/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(workers_of(parent)[1], signal.SIGKILL)
    code, output = cdgen_command.wait()
    assert code == 1 and "2 of 3 workers failed: it was killed by signal 9 (SIGKILL)" in output, output
    assert output.count("\n") == 1 and "rerun to resume" in output
    log = next(out.glob("_logs/*/00002/worker.log")).read_text(encoding="utf-8")
    assert log.rstrip().rpartition("\n")[2].endswith("_tasks/00002: cannot create this folder: File exists")
    manifest = json.loads((out / NAME).read_text(encoding="utf-8"))
    assert not manifest["complete"] and len(manifest["shards"]) >= 5, "the other one has finished"

    (out / "_tasks/00002").unlink()
    code, output = cdgen_command(*argv, "--out", out, "--workers", 1)
    assert code == 0 and f"wrote {10 - len(manifest['shards'])} of 10 shards; 100 documents" in output, output
    assert corpus(out) == corpus(tmp_path / "one")
    code, output = cdgen_command(*argv, "--out", out, "--workers", 2)
    assert code == 0 and "already complete, nothing to do" in output


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the workers in /proc, which Linux has")
def test_workers_end_with_their_command(cdgen_command: CommandLine, argv: list[Any], tmp_path: Path) -> None:
    """After kill -9 of the command, which cannot end them itself, no process writes on."""
    argv[argv.index("--max-tokens") + 1] = 200
    parent = cdgen_command.start(*argv, "--quiet", "--out", tmp_path, "--workers", 1)
    deadline = time.monotonic() + 120
    while not (workers := workers_of(parent)) and time.monotonic() < deadline:
        time.sleep(0.01)
    while not list(tmp_path.glob("_logs/*/*/executor.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    assert cdgen_command.wait()[0] == -signal.SIGKILL
    while Path(f"/proc/{workers[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{workers[0]}").exists()


def test_the_message_of_a_worker_does_not_need_the_log(tmp_path: Path) -> None:
    """It cannot be written to a full disk."""
    task = datatrove_workers.Task(None, [], 0, 2, 1, str(tmp_path))  # type: ignore[arg-type]
    (tmp_path / "worker.log").touch()
    command = [sys.executable, "-c", "print('shard: no space', end=''); exit(1)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        process.wait()
        assert str(datatrove_workers._error(task, process, 1, 2)).startswith("1 of 2 workers failed: shard: no space; ")


def test_errors_are_found_before_anything_is_written(
    cdgen_command: CommandLine, argv: list[Any], tmp_path: Path
) -> None:
    for options, message in (
        (("--workers", 0), "--workers = 0"),
        (("--workers", 2, "--slurm", 2), "exclude each other"),
        (("--workers", 2, "--no-resume"), "--no-resume: cannot be used with --workers"),
        (("--workers", 2, "--device", "cuda:0"), "device = 'cuda:0'"),
        (("--slurm-args", "time=1"), "--slurm-args: needs --slurm TASKS"),
        (("--slurm", 2), "--slurm-args: time=VALUE and partition=VALUE must be given"),
    ):
        code, output = cdgen_command(*argv, "--out", tmp_path / "out", *options)
        assert code == 2 and message in output and output.count("\n") == 1, output
    assert not (tmp_path / "out").exists()


def test_without_datatrove_one_line_says_what_to_install(
    argv: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cdgen.cli import main

    monkeypatch.setattr("cdgen.cli.scale_out.importlib.util.find_spec", lambda name: None)
    for option in (("--workers", "2"), ("--slurm", "2")):
        assert main([*map(str, argv), "--out", str(tmp_path / "out"), *option]) == 2
        assert capsys.readouterr().err == (f'cdgen: error: {option[0]}: needs datatrove: pip install ".[datatrove]"\n')
    assert not (tmp_path / "out").exists()


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    for visible, expected in (("", ["0", "1", "2"]), ("5,GPU-8f,7", ["5", "GPU-8f", "7"])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        found = datatrove_workers._environments(3, None)
        assert [each["CUDA_VISIBLE_DEVICES"] for each in found] == expected
    assert datatrove_workers.gpu_count("cuda") == 3 and datatrove_workers.gpu_count("cpu") == 0
    assert {each["CUDA_VISIBLE_DEVICES"] for each in datatrove_workers._environments(2, "cpu")} == {"5,GPU-8f,7"}


@pytest.mark.parametrize(
    "given",
    ["time", "Time=1", "array=0-3", "cpus_per_task=0", "cpus_per_task=x", "time=1", "account=a\nb", "=1"],
)
def test_arguments_for_slurm_that_cannot_be_used(given: str) -> None:
    with pytest.raises(InputError, match="--slurm-args "):
        slurm_arguments(["time=1:00", "partition=p", given])


def test_arguments_for_slurm() -> None:
    given = ["time=1:00", "partition=p", "gpus_per_task=1", "account=a", "mail_user=me@x.org", "mem_per_gpu=8G"]
    assert slurm_arguments(given) == {
        "qos": "", "job_name": "cdgen", "time": "1:00", "partition": "p", "gpus_per_task": 1, "mail_user": "me@x.org",
        "sbatch_args": {"account": "a", "mem-per-gpu": "8G"},
    }  # fmt: skip


@pytest.mark.slow
def test_scripts_for_slurm_are_written_where_sbatch_is_absent(
    cdgen_command: CommandLine, argv: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their syntax is correct, and what their jobs run writes the corpus."""
    out = tmp_path / "out"
    code, output = cdgen_command(*argv, "--out", out, "--slurm", 2, *SLURM, PATH="/nonexistent")
    assert code == 0 and "sbatch was not found, so nothing was submitted." in output, output
    array, merge = sorted(out.rglob("launch_script.slurm"), key=lambda path: len(path.parts))
    assert f"job=$(sbatch --parsable {array})" in output
    assert f"sbatch --dependency=afterok:$job {merge}" in output
    for script, tasks in ((array, 2), (merge, 1)):
        assert subprocess.run(["bash", "-n", script], capture_output=True).stderr == b""
        text = script.read_text(encoding="utf-8")
        for option in ("partition=gpu", "time=1:00:00", "cpus-per-task=2", "account=lab", f"array=0-{tasks - 1}"):
            assert f"#SBATCH --{option}\n" in text
        assert "--qos" not in text and f"launch_pickled_pipeline {script.parent}/executor.pik" in text

    # What the scripts start, with the variables that Slurm sets, and the one command of Slurm that datatrove calls.
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho node1\n", encoding="utf-8")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry or os.getcwd() for entry in sys.path))
    monkeypatch.setenv("SLURM_NODELIST", "node1")
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)  # for the tasks in this process
    for script, task, own_process in ((array, 0, True), (array, 1, False), (merge, 0, False)):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        command = [sys.executable, "-m", launch_pickled_pipeline.__name__, str(script.parent / "executor.pik")]
        if own_process:
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        else:
            monkeypatch.setattr(sys, "argv", command[2:])
            launch_pickled_pipeline.main()
    assert cdgen_command(*argv, "--quiet", "--out", tmp_path / "one") == (0, "")
    assert {name: content for name, content in corpus(out).items() if name != NAME} == {
        name: content for name, content in corpus(tmp_path / "one").items() if name != NAME
    }
    assert json.loads((out / NAME).read_text(encoding="utf-8"))["complete"]
    code, output = cdgen_command(*argv, "--out", out, "--slurm", 2, *SLURM, PATH="/nonexistent")
    assert code == 0 and "already complete, nothing to do; 100 documents" in output


def test_jobs_are_submitted_where_sbatch_exists(cdgen_command: CommandLine, argv: list[Any], tmp_path: Path) -> None:
    """A script in place of sbatch keeps what it is given, and prints the number of a job."""
    (tmp_path / "bin").mkdir()
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho Submitted batch job $(wc -l < {tmp_path}/calls)\n',
        encoding="utf-8",
    )
    sbatch.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    code, output = cdgen_command(*argv, "--out", tmp_path / "out", "--slurm", 20, *SLURM, PATH=path)
    assert code == 0 and "only 10 of 20 processes have a shard to write" in output
    assert "submitted job 1 with 10 tasks, and job 3, which merges their shards" in output
    calls = (tmp_path / "calls").read_text(encoding="utf-8").splitlines()
    assert len(calls) == 4 and "--dependency=afterok:1" in calls[2]
    shutil.rmtree(tmp_path / "out")
    sbatch.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    code, output = cdgen_command(*argv, "--quiet", "--out", tmp_path / "out", "--slurm", 2, *SLURM, PATH=path)
    assert code == 1 and "error: sbatch: " in output and "returned non-zero exit status 1" in output
