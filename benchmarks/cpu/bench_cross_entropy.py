"""Loss and gradients of an output layer on the CPU: linear_cross_entropy against torch's, in time and in memory.

    python -m pytest benchmarks/cpu/bench_cross_entropy.py --benchmark-only --benchmark-json=cross_entropy.json

4,096 rows, 32,000 entries, width 256, float32, forward and backward. The gradients are compared before any time is
reported. Peak memory is what one call adds to the process at its highest, each call in a process of its own: a small
call first, so that what torch's libraries take once is not counted, and no freed memory kept for the call to reuse.
"""

import functools
import json
import os
import subprocess
import sys

import torch
from torch.nn.functional import cross_entropy

from benchmarks.cpu.harness import compare
from cdgen_kernels.cross_entropy import linear_cross_entropy

ROWS, VOCAB_SIZE, WIDTH = 4096, 32_000, 256


def plain(hidden, weight, target):
    return cross_entropy(hidden @ weight.T, target)


VARIANTS = {"fused": linear_cross_entropy, "torch": plain}


def make_problem(rows):
    """hidden [rows, D], weight [V, D] and target [rows], a tenth of it ignored; logits of standard deviation 3."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator)
    weight = 3 / WIDTH**0.5 * torch.randn(VOCAB_SIZE, WIDTH, generator=generator)
    target = torch.randint(VOCAB_SIZE, (rows,), generator=generator)
    target[::10] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), target


def loss_and_gradients(variant, hidden, weight, target):
    loss = VARIANTS[variant](hidden, weight, target)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def high_water():
    """The greatest resident memory of this process so far, bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def measure_peak(variant):
    """Bytes that a call adds at its highest: run in a process of its own."""
    torch.set_num_threads(2)
    loss_and_gradients(variant, *make_problem(8))
    problem = make_problem(ROWS)
    with open("/proc/self/clear_refs", "w") as reset:  # the high-water mark starts anew from here
        reset.write("5")
    before = resident()
    loss_and_gradients(variant, *problem)
    return high_water() - before


def peak_memory(variant):
    code = f"from benchmarks.cpu.bench_cross_entropy import measure_peak; print(measure_peak({variant!r}))"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}  # glibc returns what is larger as it is freed
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout)


def test_linear_cross_entropy(benchmark):
    problem = make_problem(ROWS)
    for x, y in zip(loss_and_gradients("fused", *problem), loss_and_gradients("torch", *problem), strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()

    benchmark.group = f"cross entropy {ROWS} x {VOCAB_SIZE} x {WIDTH} float32"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    peaks = {variant: peak_memory(variant) for variant in VARIANTS}
    for variant, peak in peaks.items():
        benchmark.extra_info[f"{variant}, MB at the peak"] = round(peak / 1e6)
    benchmark.extra_info["memory, torch / fused"] = round(peaks["torch"] / peaks["fused"], 2)
    calls = {variant: functools.partial(loss_and_gradients, variant, *problem) for variant in VARIANTS}
    compare(benchmark, ("fused", calls.pop("fused")), calls, rounds=5)
