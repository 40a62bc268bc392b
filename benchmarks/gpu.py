"""Checks every kernel on the GPU at hand, then times it against what one would use instead. One command:

    python -m benchmarks.gpu [--json FILE] [--quick]

It takes less than ten minutes: what does not fit in is dropped, and named. Without a CUDA GPU it only compiles.
FlashInfer (`pip install flashinfer-python`) and Liger (`pip install liger-kernel`) take part where they are installed.
"""

import argparse
import importlib.metadata
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import aot
from benchmarks.cases import cases
from benchmarks.check import FACTOR, MISMATCHES, attempt, check, check_graph, check_noise, in_one_line
from benchmarks.cold import INPUTS, ColdTimer, measure_limits, quartiles

BUDGET = 420  # seconds, after which nothing new is begun: a compilation by torch or FlashInfer may take a minute more


def machine():
    """Names and versions."""
    found = {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "hip": torch.version.hip}
    for package in ("torch", "triton", "flashinfer-python", "liger-kernel"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def variants(case):
    """{name: (*inputs) -> whatever}, the op first; torch.compile, which takes longest, only at the main sizes."""
    found = {"fused": case.op.fused, "torch eager": case.op.eager} | case.op.rivals
    if (case.batch, case.dtype) == (case.op.batches[0], case.op.dtypes[0]):
        torch.compiler.reset()  # else the limit on recompilations falls back to eager, silently
        found["torch.compile"] = torch.compile(case.op.eager, dynamic=False)
    return found


def able(candidates, inputs):
    """(those that ran once, {name: why not} of the others). The op itself has to run."""
    running, failed = {}, {}
    for name, call in candidates.items():
        try:
            call(*inputs)
            torch.cuda.synchronize()
            running[name] = call
        except Exception as error:
            if name == "fused":
                raise
            failed[name] = in_one_line(error)
    return running, failed


def time_case(case, timer, limits):
    """Times of all variants of a case, and how near the op comes to the limits measured in this run."""
    inputs = [case.make("cuda", seed) for seed in range(INPUTS)]
    running, failed = able(variants(case), inputs[0])
    times = {name: quartiles(found) for name, found in timer.time(running, inputs).items()}
    own = times["fused"][1]
    size, flops = case.op.bytes(*inputs[0]), case.op.flops(*inputs[0])
    result = {"case": str(case), "seconds, quartiles": times, "failed": failed, "bytes": size, "bytes/s": size / own}
    result["of copy"] = result["bytes/s"] / limits["copy, bytes/s"]
    if flops:
        result |= {"flops": flops, "FLOP/s": flops / own}
        result["of matmul"] = result["FLOP/s"] / limits[f"{str(case.dtype)[6:]}, FLOP/s"]
    return result


def show_checked(checked):
    errors = "; ".join(
        f"{name} off by {e['own']:.1e} (torch {e['torch']:.1e}, allowed {e['allowed']:.1e})"
        for name, e in checked.errors.items()
    )
    mark = "ok    " if checked.ok else "WRONG "
    print(
        f"{mark}{checked.name}: {checked.mismatches} of {checked.rows} rows differ; {errors}".rstrip("; "), flush=True
    )


def show_timed(result):
    times = result["seconds, quartiles"]
    near = f"{result['bytes/s'] / 1e9:.0f} GB/s, {result['of copy']:.0%} of the copy"
    if "FLOP/s" in result:
        near += f"; {result['FLOP/s'] / 1e12:.0f} TFLOP/s, {result['of matmul']:.0%} of the matrix product"
    print(f"\n{result['case']}: {near}")
    lines = [["", "median, us", "quartiles, us", "times fused"]]
    for name, (low, median, high) in times.items():
        ratio = median / times["fused"][1]
        lines.append([f"  {name}", f"{median * 1e6:.1f}", f"{low * 1e6:.1f} to {high * 1e6:.1f}", f"{ratio:.2f}"])
    print(aot.aligned(lines))
    for name, why in result["failed"].items():
        print(f"  {name}: {why}")
    sys.stdout.flush()


def check_all(wanted, has_time):
    """({case: its check}, cases dropped for want of time)"""
    checks, dropped = {}, []
    for case in wanted:
        if not has_time():
            dropped.append(str(case))
            continue
        checks[case] = attempt(str(case), check, case, "cuda")
        show_checked(checks[case])
        torch.cuda.empty_cache()
    return checks, dropped


def main(arguments=None):
    """Returns the process's exit status: 1 where a result was wrong."""
    parser = argparse.ArgumentParser(prog="benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    parser.add_argument("--quick", action="store_true", help="the smaller size of each op, large batches, bfloat16")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("No CUDA GPU here: nothing is run or timed. The kernels compiled ahead of time:\n")
        aot.main(["--json", str(options.json)] if options.json else [])
        return 0

    began = time.monotonic()

    def has_time():
        return time.monotonic() - began < BUDGET

    wanted = cases()
    if options.quick:
        wanted = [c for c in wanted if (c.batch, c.size, c.dtype) == (c.op.batches[0], c.op.sizes[-1], torch.bfloat16)]
    about = machine()
    print(", ".join(f"{name} {version}" for name, version in about.items() if version))
    print(f"Allowed: {MISMATCHES:.1%} of the rows may differ, floats {FACTOR} times as far off as torch's own.\n")
    general = [attempt("noise", check_noise, "cuda"), attempt("CUDA graph", check_graph)]
    for checked in general:
        show_checked(checked)
    checks, dropped = check_all(wanted, lambda: time.monotonic() - began < BUDGET / 2)

    timer = ColdTimer()
    limits = measure_limits(timer)
    print("\nMeasured here: " + ", ".join(f"{name} {rate:.3g}" for name, rate in limits.items()))
    timed = []
    for case, checked in checks.items():
        if not has_time():
            dropped.append(str(case))
        elif checked.ok:
            timed.append(time_case(case, timer, limits))
            show_timed(timed[-1])
        torch.cuda.empty_cache()
    if dropped:
        print(f"\nDropped, since {BUDGET} s were used up: " + "; ".join(dropped))
    everything = [*general, *checks.values()]
    if options.json:
        found = {"machine": about, "limits": limits, "checks": [asdict(c) | {"ok": c.ok} for c in everything]}
        options.json.write_text(json.dumps(found | {"timed": timed, "dropped": dropped}, indent=1))
    return 0 if all(c.ok for c in everything) else 1


if __name__ == "__main__":
    sys.exit(main())
