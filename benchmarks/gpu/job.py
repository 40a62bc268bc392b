"""Run one job. The parent process starts `python -m benchmarks.gpu.job MODULE NAME ...` for every job."""

import argparse
import faulthandler
import importlib
import signal
import time
from pathlib import Path

import torch

from benchmarks.gpu.context import MARGIN, Context
from benchmarks.gpu.processes import end_with_parent

GRACE = 15  # seconds after its limit at which a job ends itself, if its parent has not ended it


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.gpu.job")
    parser.add_argument("module")
    parser.add_argument("name")
    parser.add_argument("--part", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--started", type=float, help="time.monotonic() from which the seconds count, default: now")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parent", type=int, help="process whose end also ends this one, default: none")
    options = parser.parse_args()
    if options.parent:
        end_with_parent(options.parent)
    faulthandler.enable()
    # The parent's time is earlier, by the seconds that importing torch takes.
    started = time.monotonic() if options.started is None else options.started
    device = torch.device(options.device)
    context = Context(options.part, options.name, options.out, options.seconds, device, started)
    faulthandler.dump_traceback_later(max(context.left - MARGIN, 0.1))
    signal.alarm(int(max(context.left, 0) + GRACE))
    if context.dry:
        torch.set_num_threads(1)
    importlib.import_module(options.module).JOBS[options.name](context)
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
