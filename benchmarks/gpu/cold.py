"""Measure times with cold caches: interleaved variants, rotating inputs, CUDA events."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch

from benchmarks.ops.op import Inputs

RUNS = 25
INPUTS = 3  # sets of inputs, used in turns
LEAD = 1e-3  # seconds of reads before a call, during which the CPU queues all launches of the call

Call = Callable[..., object]
Times = dict[str, list[float]]  # name of a variant -> seconds of each run
EventPair = tuple[torch.cuda.Event, torch.cuda.Event]


class ColdTimer:
    """Time calls on the GPU. Before each, a buffer larger than the L2 cache is read repeatedly for LEAD seconds.

    The buffer is read and not written, since dirty cache lines would be written back while the timed kernel runs.
    """

    def __init__(self) -> None:
        cache = torch.cuda.get_device_properties("cuda").L2_cache_size
        self._buffer = torch.ones(max(4 * cache, 256 << 20) // 4, device="cuda")
        self._flush(3)
        start, end = _timed(self._buffer.sum)
        torch.cuda.synchronize()
        self._reads = 1 + int(LEAD / (start.elapsed_time(end) * 1e-3))

    def _flush(self, reads: int) -> None:
        for _ in range(reads):
            self._buffer.sum()

    def time(self, variants: dict[str, Call], inputs: Sequence[Inputs], runs: int = RUNS) -> Times:
        """Time every variant `runs` times, with the sets of inputs in turns."""
        events: dict[str, list[EventPair]] = {name: [] for name in variants}
        for run in range(runs):
            for name, call in variants.items():
                self._flush(self._reads)
                events[name].append(_timed(partial(call, *inputs[run % len(inputs)])))
            torch.cuda.synchronize()
        return {name: [start.elapsed_time(end) * 1e-3 for start, end in pairs] for name, pairs in events.items()}


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


def _timed(call: Call) -> EventPair:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return start, end


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return (lower quartile, median, upper quartile)."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return lower, median, upper


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
