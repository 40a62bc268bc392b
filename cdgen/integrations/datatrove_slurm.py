"""Submit the tasks of a corpus to Slurm: an array of jobs, and a job that merges their parts."""

import os
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor

from cdgen.corpus import parts
from cdgen.corpus.job import CorpusJob
from cdgen.errors import CorpusError, InputError, first_line
from cdgen.integrations.datatrove_corpus import FinishCorpus, WriteShards
from cdgen.storage.folder import OutputFolder
from cdgen.values import integer

# Arguments of SlurmPipelineExecutor; any other name is an option of sbatch, such as account or gres.
_NUMBERS = {"cpus_per_task": 1, "mem_per_cpu_gb": 1, "gpus_per_task": 0, "workers": 1}  # and the least value
_TEXTS = ("time", "partition", "job_name", "qos", "env_command", "condaenv", "venv_path", "mail_type", "mail_user")
_REQUIRED = ("time", "partition")
_OWN = ("array", "dependency", "output", "error")  # options of sbatch that datatrove sets


def slurm_arguments(given: list[str]) -> dict[str, Any]:
    """Return the arguments of datatrove's SlurmPipelineExecutor for a list of KEY=VALUE.

    Raises:
        InputError: an argument is not KEY=VALUE, is given twice, has a bad value, or a required one is missing.
    """
    found: dict[str, Any] = {}
    options: dict[str, str] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            raise InputError(f"--slurm-args {each}: is not KEY=VALUE")
        if not value.isprintable() or name in _OWN:
            raise InputError(f"--slurm-args {each}: {'is set by cdgen' if name in _OWN else 'is not one line of text'}")
        if name in found or name in options:
            raise InputError(f"--slurm-args {each}: {name} is given twice")
        if name in _NUMBERS:
            try:
                found[name] = integer(name, int(value), _NUMBERS[name], 10**6)
            except ValueError as error:
                raise InputError(f"--slurm-args {each}: must be a whole number, at least {_NUMBERS[name]}") from error
        elif name in _TEXTS:
            found[name] = value
        else:
            options[name.replace("_", "-")] = value
    missing = [name for name in _REQUIRED if name not in found]
    if missing:
        raise InputError(f"--slurm-args: {' and '.join(f'{name}=VALUE' for name in missing)} must be given")
    return {"qos": "", "job_name": "cdgen"} | found | {"sbatch_args": options}


def submit(
    job: CorpusJob,
    folder: OutputFolder,
    shards: list[int],
    *,
    tasks: int,
    threads: int | None,
    arguments: dict[str, Any],
) -> str:
    """Submit the tasks and the merge, or only write their scripts if this machine has no `sbatch`.

    Args:
        job: the corpus.
        folder: its folder, as an entered context, without parts.
        shards: numbers of the missing shards.
        tasks: number of tasks.
        threads: CPU threads of each; default: `cpus_per_task`.
        arguments: see :func:`slurm_arguments`.
    Returns:
        What has been done, and what the user has to do.
    Raises:
        InputError: the folder's path cannot stand in a script.
        CorpusError: Slurm refuses a job.
    """
    logs = parts.log_folder(folder.path.absolute())
    if shlex.quote(str(logs)) != str(logs):
        raise InputError(
            f"--out {folder.path}: datatrove's scripts cannot hold this path; use letters, digits, _ - . /"
        )
    parts.distribute(folder, shards, tasks)
    common = _environment(arguments) | arguments | {"skip_completed": False}
    write = WriteShards(job, shards, threads or arguments.get("cpus_per_task", 1))
    array = SlurmPipelineExecutor([write], tasks=tasks, logging_dir=str(logs), **common)
    common |= {"job_name": f"{common['job_name']}-merge", "workers": -1}
    if not shutil.which("sbatch"):
        merge = SlurmPipelineExecutor([FinishCorpus(job)], tasks=1, logging_dir=f"{logs}/merge", **common)
        for executor in (array, merge):
            _write_script(executor)
        return (
            "sbatch was not found, so nothing was submitted. Run these lines in this folder where Slurm is installed:\n"
            f"  job=$(sbatch --parsable {logs}/launch_script.slurm)\n"
            f"  sbatch --dependency=afterok:$job {logs}/merge/launch_script.slurm"
        )
    try:
        array.run()
        merge = SlurmPipelineExecutor(
            [FinishCorpus(job)], tasks=1, logging_dir=f"{logs}/merge", depends_job_id=array.job_id, **common
        )
        merge.run()
    except Exception as error:  # what subprocess raises if sbatch fails
        raise CorpusError(f"sbatch: {first_line(error)}; see {logs}") from error
    return (
        f"submitted job {array.job_id} with {tasks} tasks, and job {merge.job_id}, which merges their shards; "
        "if a task fails, rerun this command"
    )


def _write_script(executor: SlurmPipelineExecutor) -> None:
    """Let datatrove write the script of a job, which it does before it calls sbatch."""
    try:
        executor.run()
    except FileNotFoundError as error:
        if error.filename != "sbatch":
            raise


def _environment(arguments: dict[str, Any]) -> dict[str, str]:
    """Return the virtual environment of this process, unless the arguments choose one."""
    chosen = any(name in arguments for name in ("env_command", "condaenv", "venv_path"))
    activate = Path(sys.prefix) / "bin" / "activate"
    if chosen or sys.prefix == sys.base_prefix or not activate.exists():
        return {}
    return {"venv_path": shlex.quote(os.fspath(activate))}
