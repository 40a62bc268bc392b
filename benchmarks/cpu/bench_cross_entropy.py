"""Time and memory of linear_cross_entropy on the CPU, compared with torch's cross entropy.

    python -m pytest benchmarks/cpu/bench_cross_entropy.py --benchmark-only --benchmark-json=cross_entropy.json

Forward and backward with 4,096 rows, 32,000 vocabulary entries, width 256, float32. The gradients are compared before
any time is reported. Peak memory is how far one call raises the memory of its process. Each call is measured in a
process of its own, after a small call that makes torch's libraries allocate what they keep, and without freed memory
that the measured call could reuse.
"""

import functools
import json
import os
import subprocess
import sys

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch.nn.functional import cross_entropy

from benchmarks.cpu.harness import compare
from cdgen_kernels import linear_cross_entropy

ROWS, VOCAB_SIZE, WIDTH = 4096, 32_000, 256


def torch_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return cross_entropy(hidden @ weight.T, target)


VARIANTS = {"fused": linear_cross_entropy, "torch": torch_cross_entropy}


def make_problem(rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return hidden [rows, D], weight [V, D] and target [rows].

    The logits have standard deviation 3. Every tenth target is ignored.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, WIDTH, generator=generator)
    weight = 3 / WIDTH**0.5 * torch.randn(VOCAB_SIZE, WIDTH, generator=generator)
    target = torch.randint(VOCAB_SIZE, (rows,), generator=generator)
    target[::10] = -100
    return hidden.requires_grad_(), weight.requires_grad_(), target


def loss_and_gradients(
    variant: str, hidden: torch.Tensor, weight: torch.Tensor, target: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    loss = VARIANTS[variant](hidden, weight, target)
    return loss.detach(), *torch.autograd.grad(loss, (hidden, weight))


def peak_resident() -> int:
    """Return the peak resident memory of this process so far, in bytes."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def measure_peak(variant: str) -> int:
    """Return how many bytes a call adds at its peak. Run it in a process of its own."""
    torch.set_num_threads(2)
    loss_and_gradients(variant, *make_problem(8))
    problem = make_problem(ROWS)
    with open("/proc/self/clear_refs", "w") as clear_refs:  # resets the peak
        clear_refs.write("5")
    before = resident()
    loss_and_gradients(variant, *problem)
    return peak_resident() - before


def peak_memory(variant: str) -> int:
    """Return :func:`measure_peak` of a new process."""
    code = f"from benchmarks.cpu.bench_cross_entropy import measure_peak; print(measure_peak({variant!r}))"
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "100000"}  # glibc returns larger blocks when they are freed
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return int(json.loads(done.stdout))


def test_linear_cross_entropy(benchmark: BenchmarkFixture) -> None:
    problem = make_problem(ROWS)
    for x, y in zip(loss_and_gradients("fused", *problem), loss_and_gradients("torch", *problem), strict=True):
        assert (x - y).norm() <= 1e-5 * y.norm()

    benchmark.group = f"cross entropy {ROWS} x {VOCAB_SIZE} x {WIDTH} float32"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    peaks = {variant: peak_memory(variant) for variant in VARIANTS}
    for variant, peak in peaks.items():
        benchmark.extra_info[f"{variant}, peak MB"] = round(peak / 1e6)
    benchmark.extra_info["memory, torch / fused"] = round(peaks["torch"] / peaks["fused"], 2)
    calls = {variant: functools.partial(loss_and_gradients, variant, *problem) for variant in VARIANTS}
    compare(benchmark, ("fused", calls.pop("fused")), calls, rounds=5)
