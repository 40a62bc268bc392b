"""The options of `cdgen generate` that write a corpus with several processes or with Slurm."""

import argparse
import importlib.util
import logging
from typing import TYPE_CHECKING, NamedTuple

from cdgen.errors import InputError
from cdgen.values import integer

if TYPE_CHECKING:
    from cdgen.corpus.job import CorpusJob, Texts
    from cdgen.storage.folder import OutputFolder
    from cdgen.storage.manifest import Manifest
    from cdgen.storage.progress import Progress

log = logging.getLogger("cdgen")

_MOST_TASKS = 1000  # fit one job array of Slurm as it is usually configured


class Outcome(NamedTuple):
    """What was done: a corpus with its manifest and the number of new shards, or a message about submitted jobs."""

    manifest: "Manifest | None" = None
    written: int = 0
    message: str = ""


def add_scale_out(parser: argparse.ArgumentParser) -> None:
    """Add `--workers`, `--slurm` and `--slurm-args`."""
    group = parser.add_argument_group("several processes or machines (needs datatrove)")
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="write the shards with N processes on this machine, one per GPU; without GPUs they share the CPU",
    )
    group.add_argument("--slurm", type=int, metavar="TASKS", help="submit the work to Slurm as an array of TASKS jobs")
    group.add_argument(
        "--slurm-args",
        nargs="+",
        metavar="KEY=VALUE",
        help="arguments of datatrove's SlurmPipelineExecutor (time and partition are required; cpus_per_task, "
        "mem_per_cpu_gb, gpus_per_task, ...) and options of sbatch, such as account=NAME",
    )


def check_scale_out(args: argparse.Namespace) -> None:
    """Check the options, before anything is read.

    Raises:
        InputError: a value cannot be used, options contradict each other, or datatrove is missing.
    """
    if args.slurm_args is not None and args.slurm is None:
        raise InputError("--slurm-args: needs --slurm TASKS")
    if args.workers is None and args.slurm is None:
        return
    if args.workers is not None and args.slurm is not None:
        raise InputError("--workers and --slurm exclude each other: each job of --slurm is one process")
    option = "--workers" if args.slurm is None else "--slurm"
    integer(option, args.workers if args.slurm is None else args.slurm, 1, _MOST_TASKS)
    if not args.resume:
        raise InputError(
            f"--no-resume: cannot be used with {option}; choose another folder, or delete the corpus first"
        )
    if importlib.util.find_spec("datatrove") is None:
        raise InputError(f'{option}: needs datatrove: pip install ".[datatrove]"')
    if args.slurm is not None:
        from cdgen.integrations.datatrove_slurm import slurm_arguments

        slurm_arguments(args.slurm_args or [])
        return
    from cdgen.integrations.datatrove_workers import gpu_count

    if args.device is not None and args.device.startswith("cuda:"):
        raise InputError(f"--device {args.device}: --workers chooses the GPU of each process; use --device cuda")
    gpus = gpu_count(args.device)
    if gpus and args.workers > gpus:
        raise InputError(f"--workers {args.workers}: there are {gpus} GPUs, and each process needs one of its own")


def write_scaled_out(
    args: argparse.Namespace, job: "CorpusJob", folder: "OutputFolder", found: "Texts", progress: "Progress"
) -> Outcome:
    """Write the missing shards of a corpus with workers, or submit them to Slurm.

    Args:
        args: the parsed options.
        job: the corpus.
        folder: its folder, as an entered context.
        found: the texts of the seeds.
        progress: shows the documents that workers finish.
    """
    shards = _missing(job, folder, len(found.texts))
    if not shards and args.slurm is None:  # this checks the settings
        return Outcome(*job.write(folder, found, progress=progress))
    if not shards:  # the machine that submits jobs may be unable to load the models
        from cdgen.corpus import parts

        return Outcome(parts.finish(folder))
    asked: int = args.workers or args.slurm
    count = min(asked, len(shards))
    if count < asked:
        log.warning("only %d of %d processes have a shard to write; use a smaller --shard-size for more", count, asked)
    if args.slurm is None:
        from cdgen.integrations.datatrove_workers import run_workers

        documents = len(found.texts) * job.params.n
        manifest = run_workers(job, folder, shards, documents, workers=count, threads=args.threads, progress=progress)
        return Outcome(manifest, len(shards))
    from cdgen.integrations.datatrove_slurm import slurm_arguments, submit

    arguments = slurm_arguments(args.slurm_args or [])
    return Outcome(message=submit(job, folder, shards, tasks=count, threads=args.threads, arguments=arguments))


def _missing(job: "CorpusJob", folder: "OutputFolder", seeds: int) -> list[int]:
    """Return the numbers of the shards that the corpus lacks, after the parts of an earlier start were merged."""
    from cdgen.corpus import manifest as manifests
    from cdgen.corpus import parts

    parts.gather(folder)
    manifest = manifests.check_folder(folder)
    done = manifests.finished(folder, manifest) if manifest else {}
    return [number for number in range(job.shard_count(seeds)) if number not in done]
