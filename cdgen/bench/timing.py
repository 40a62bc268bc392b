"""Times of single calls with cold caches: variants in turns, rotating inputs, a clock or CUDA events."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

RUNS = 25
LEAD = 1e-3  # seconds of reads before a call, during which the CPU queues all launches of the call

Inputs = tuple[Any, ...]
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

    def time(self, variants: Mapping[str, Call], inputs: Sequence[Inputs], runs: int = RUNS) -> Times:
        """Time every variant `runs` times, with the sets of inputs in turns."""
        events: dict[str, list[EventPair]] = {name: [] for name in variants}
        for run in range(runs):
            for name, call in variants.items():
                self._flush(self._reads)
                events[name].append(_timed(partial(call, *inputs[run % len(inputs)])))
            torch.cuda.synchronize()
        return {name: [start.elapsed_time(end) * 1e-3 for start, end in pairs] for name, pairs in events.items()}


def _timed(call: Call) -> EventPair:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return start, end


class ClockTimer:
    """Time calls on the CPU. Before each, a buffer larger than the caches of a usual machine is written."""

    def __init__(self) -> None:
        self._buffer = torch.zeros(32 << 20)  # 128 MiB

    def time(self, variants: Mapping[str, Call], inputs: Sequence[Inputs], runs: int = RUNS) -> Times:
        """Time every variant `runs` times, with the sets of inputs in turns."""
        times: Times = {name: [] for name in variants}
        for run in range(runs):
            for name, call in variants.items():
                self._buffer.add_(1)
                start = time.perf_counter()
                call(*inputs[run % len(inputs)])
                times[name].append(time.perf_counter() - start)
        return times


Timer = ColdTimer | ClockTimer


def quartiles(times: Sequence[float]) -> tuple[float, float, float]:
    """Return (lower quartile, median, upper quartile)."""
    lower, median, upper = statistics.quantiles(times, n=4, method="inclusive")
    return lower, median, upper


def copy_bandwidth(timer: Timer, device: torch.device) -> float:
    """Measure the bytes/s of a copy, counting both read and write."""
    source, target = torch.ones(2, (1 << 30 if device.type == "cuda" else 1 << 28) // 4, device=device)
    target.copy_(source)
    seconds = statistics.median(timer.time({"copy": target.copy_}, [(source,)], runs=9)["copy"])
    return 2 * source.nbytes / seconds
