"""The command `python -m benchmarks.gpu`; docs/gpu.md describes it. This process imports neither torch nor Triton."""

import argparse
import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from benchmarks.gpu import records
from benchmarks.gpu.machine import machine
from benchmarks.gpu.parts import PARALLEL, PARTS, Job
from benchmarks.gpu.processes import Runner, environment
from benchmarks.gpu.summary import has_failed, summary


def make_parser(parts: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description="Check and time everything that needs a GPU; see docs/gpu.md."
    )
    parser.add_argument("--parts", default=",".join(parts), help="comma-separated list of parts (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu-results.jsonl"),
        help="results file, to which the run appends (default: %(default)s)",
    )
    parser.add_argument("--no-compile", action="store_true", help="skip rivals that need torch.compile")
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="time budget of the run; jobs that do not fit are dropped (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="run the same code on the CPU with tiny inputs")
    return parser


def concurrent_jobs(part: str, dry: bool) -> int:
    """Return how many jobs of a part run at the same time. On a GPU, timed jobs run alone."""
    cores = len(os.sched_getaffinity(0))
    if dry:
        return cores
    return max(1, cores // 2) if part in PARALLEL else 1


def parse(arguments: Sequence[str] | None, parts: Iterable[str]) -> argparse.Namespace:
    """Parse and check the options; `parts` becomes a list and `out` an absolute path that can be written to."""
    parser = make_parser(parts)
    options = parser.parse_args(arguments)
    options.parts = [part.strip() for part in options.parts.split(",")]
    if unknown := [part for part in options.parts if part not in parts]:
        parser.error(f"--parts: {', '.join(unknown)}: use {', '.join(parts)}")
    if not options.seconds > 0:
        parser.error(f"--seconds {options.seconds:g}: must be more than 0")
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.open("ab").close()
    except OSError as error:
        parser.error(f"--out {options.out}: cannot be written: {error.strerror}")
    options.out = options.out.absolute()
    return options


def reason_to_stop(about: records.Record, dry: bool, dry_run_option: bool) -> str | None:
    """Return why a run cannot start on this machine, or None."""
    if about["torch"] is None:
        return f"torch cannot be imported: {about['probe']}"
    if about["nvidia-smi"] and dry and not dry_run_option:
        return "nvidia-smi finds a GPU, but torch cannot use it. To run on the CPU, use --dry-run."
    return None


def run_jobs(runner: Runner, parts: dict[str, tuple[Job, ...]], options: argparse.Namespace, dry: bool) -> None:
    """Run the jobs of the chosen parts, in the order of the table."""
    for part, jobs in parts.items():
        if part in options.parts:
            chosen = [job for job in jobs if not (job.compiles and options.no_compile)]
            runner.run([job for job in chosen if not (dry and job.skipped_in_dry_run)], concurrent_jobs(part, dry))


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit cleanly on SIGTERM, and on SIGHUP after a lost connection, so that jobs end with this process."""
    replaced = {number: signal.signal(number, lambda *_: sys.exit(1)) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None, parts: dict[str, tuple[Job, ...]] = PARTS) -> int:
    """Run the command and return its exit status, which is 1 if anything was wrong or failed."""
    started = time.monotonic()
    options = parse(arguments, parts)
    out, start = options.out, options.out.stat().st_size
    with exit_on_signals(), environment() as (variables, folder):
        about = machine(variables)
        dry = options.dry_run or not (about["torch"] or {}).get("available")
        records.append(out, about | {"dry": dry})
        print(f"{about['nvidia-smi'] or 'no nvidia-smi'}; {about['torch']}; {about['versions']}; {about['commit']}")
        if (reason := reason_to_stop(about, dry, options.dry_run)) is not None:
            print(reason)
            return 1
        if dry and not options.dry_run:
            print("torch finds no CUDA device: this is a dry run on the CPU.")
        left = options.seconds - (time.monotonic() - started)
        runner = Runner(out, left, ["--device", "cpu" if dry else "cuda"], variables, folder)
        try:
            run_jobs(runner, parts, options, dry)
        finally:
            found = list(records.read(out, start))
            print(f"{summary(found)}\nresults: {out}", flush=True)
    return 1 if has_failed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
