"""python -m benchmarks.gpu: see docs/gpu.md. This process imports neither torch nor Triton."""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.gpu import records
from benchmarks.gpu.machine import machine
from benchmarks.gpu.parts import PARALLEL, PARTS, Job
from benchmarks.gpu.processes import Runner, environment
from benchmarks.gpu.summary import has_failed, summary


def _parser(parts: Iterable[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu", description="Check and time everything that needs a GPU; see docs/gpu.md."
    )
    parser.add_argument("--parts", default=",".join(parts), help="comma-separated (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("gpu-results.jsonl"),
        help="results file, appended to (default: %(default)s)",
    )
    parser.add_argument("--no-compile", action="store_true", help="skip rivals that need torch.compile")
    parser.add_argument(
        "--seconds",
        type=float,
        default=540,
        help="time budget of the run; a job that does not fit is dropped (default: %(default)s)",
    )
    parser.add_argument("--dry-run", action="store_true", help="run the same code on the CPU with tiny inputs")
    return parser


def at_once(part: str, dry: bool) -> int:
    """How many jobs run at once. On a GPU, timed jobs run alone."""
    cores = len(os.sched_getaffinity(0))
    if dry:
        return cores
    return max(1, cores // 2) if part in PARALLEL else 1


def main(arguments: Sequence[str] | None = None, parts: dict[str, tuple[Job, ...]] = PARTS) -> int:
    """Returns the exit status: 1 if anything was wrong or failed."""
    began = time.monotonic()
    parser = _parser(parts)
    options = parser.parse_args(arguments)
    wanted = [part.strip() for part in options.parts.split(",")]
    if unknown := [part for part in wanted if part not in parts]:
        parser.error(f"--parts: {', '.join(unknown)}: use {', '.join(parts)}")
    if not options.seconds > 0:
        parser.error(f"--seconds {options.seconds:g}: must be more than 0")
    out = options.out.absolute()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("ab") as file:
            start = file.tell()
    except OSError as error:
        parser.error(f"--out {options.out}: cannot be written: {error.strerror}")
    for number in (signal.SIGTERM, signal.SIGHUP):  # a lost connection sends the latter; the jobs end with this process
        signal.signal(number, lambda *_: sys.exit(1))
    with environment() as (variables, folder):
        about = machine(variables)
        dry = options.dry_run or not (about["torch"] or {}).get("available")
        records.append(out, about | {"dry": dry})
        print(f"{about['nvidia-smi'] or 'no nvidia-smi'}; {about['torch']}; {about['versions']}; {about['commit']}")
        if about["torch"] is None:
            print(f"torch cannot be imported: {about['probe']}")
            return 1
        if about["nvidia-smi"] and dry and not options.dry_run:
            print("nvidia-smi finds a GPU that torch cannot use; --dry-run runs on the CPU all the same.")
            return 1
        if dry and not options.dry_run:
            print("torch sees no CUDA device: this is a dry run on the CPU.")
        left = options.seconds - (time.monotonic() - began)
        runner = Runner(out, left, ["--device", "cpu" if dry else "cuda"], variables, folder)
        try:
            for part in parts:
                if part in wanted:
                    jobs = [job for job in parts[part] if not (job.compiles and options.no_compile)]
                    runner.run([job for job in jobs if not (dry and job.repeats)], at_once(part, dry))
        finally:
            found = list(records.read(out, start))
            print(f"{summary(found)}\nresults: {out}", flush=True)
    return 1 if has_failed(found) else 0


if __name__ == "__main__":
    sys.exit(main())
