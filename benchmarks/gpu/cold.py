"""Times with nothing in the caches: interleaved variants, rotating inputs, CUDA events."""

import statistics
import time
from collections.abc import Callable, Sequence

import torch

RUNS = 25
INPUTS = 3  # sets of inputs, taken in turns
LEAD = 1e-3  # seconds of flushing before a call, in which the CPU gets all launches of the call under way

Call = Callable[..., object]
Times = dict[str, list[float]]  # name of a variant -> seconds of each run


class ColdTimer:
    """Times calls on the GPU after reading a buffer larger than the L2 cache, over and over until LEAD has passed.

    The buffer is read, not written: dirty lines would have to be written back while the timed kernel runs.
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

    def time(self, variants: dict[str, Call], inputs: Sequence[tuple], runs: int = RUNS) -> Times:
        """Call every variant with each of the inputs in turn."""
        events: dict[str, list] = {name: [] for name in variants}
        for run in range(runs):
            for name, call in variants.items():
                given = inputs[run % len(inputs)]
                self._flush(self._reads)
                events[name].append(_timed(lambda call=call, given=given: call(*given)))
            torch.cuda.synchronize()
        return {name: [a.elapsed_time(b) * 1e-3 for a, b in pairs] for name, pairs in events.items()}


class WallTimer:
    """Stands in for ColdTimer on a CPU, in dry runs: a clock and few runs."""

    def time(self, variants: dict[str, Call], inputs: Sequence[tuple], runs: int = 2) -> Times:
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


def _timed(call: Call) -> tuple[torch.cuda.Event, torch.cuda.Event]:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return start, end


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile)"""
    return tuple(statistics.quantiles(times, n=4, method="inclusive"))


def measure_limits(timer: Timer, device: torch.device, size: int, width: int) -> dict[str, float]:
    """What the device does now, by name.

    Returns:
        bytes/s of a copy of `size` bytes (read and write counted) and of a plain read of them; FLOP/s of products of
        [width, width] matrices of random numbers in three dtypes, and in float32 with TF32.
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
