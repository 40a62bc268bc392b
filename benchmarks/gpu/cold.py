"""Measure times with cold caches: interleaved variants, rotating inputs, CUDA events."""

import statistics
import time
from collections.abc import Sequence

import torch

from benchmarks.ops.op import Inputs
from cdgen.bench.timing import Call, ColdTimer, Times

INPUTS = 3  # sets of inputs, used in turns


class WallTimer:
    """Stand in for ColdTimer on the CPU, in dry runs: a clock and few runs."""

    def time(self, variants: dict[str, Call], inputs: Sequence[Inputs], runs: int = 2) -> Times:
        """Time every variant at most twice."""
        times: Times = {name: [] for name in variants}
        for run in range(min(runs, 2)):
            for name, call in variants.items():
                start = time.perf_counter()
                call(*inputs[run % len(inputs)])
                times[name].append(time.perf_counter() - start)
        return times


Timer = ColdTimer | WallTimer


def timer_for(device: torch.device) -> Timer:
    return ColdTimer() if device.type == "cuda" else WallTimer()


def measure_limits(timer: Timer, device: torch.device, size: int, width: int) -> dict[str, float]:
    """Measure the rates of the device.

    Returns:
        By name: bytes/s of a copy of `size` bytes (counting both read and write) and of a plain read of them; FLOP/s
        of products of random [width, width] matrices in three dtypes, and in float32 with TF32.
    """
    source, target = (torch.randn(size // 4, device=device) for _ in range(2))
    times = timer.time({"copy": target.copy_, "read": lambda x: x.sum()}, [(source,)])
    limits = {"copy, bytes/s": 2 * size / statistics.median(times["copy"])}
    limits["read, bytes/s"] = size / statistics.median(times["read"])
    del source, target
    for name in ("bfloat16", "float16", "float32", "tf32"):
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        pairs = [tuple(torch.randn(2, width, width, device=device).to(dtype).unbind())]
        matmul = torch.backends.cuda.matmul
        before, matmul.fp32_precision = matmul.fp32_precision, "tf32" if name == "tf32" else "ieee"
        try:
            torch.mm(*pairs[0])
            seconds = statistics.median(timer.time({"product": torch.mm}, pairs, runs=10)["product"])
        finally:
            matmul.fp32_precision = before
        limits[f"{name}, FLOP/s"] = 2 * width**3 / seconds
    return limits
