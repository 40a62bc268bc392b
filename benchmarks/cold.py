"""GPU times with nothing in the caches: interleaved variants, rotating inputs, CUDA events."""

import statistics

import torch

RUNS = 25
INPUTS = 3  # sets of inputs, taken in turns
LEAD = 1e-3  # seconds of flushing before a call, in which the CPU gets all launches of the call under way


def seconds(call):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    call()
    end.record()
    return start, end


class ColdTimer:
    """Times calls after writing a buffer larger than the L2 cache, over and over until LEAD has passed."""

    def __init__(self):
        cache = torch.cuda.get_device_properties("cuda").L2_cache_size
        self._buffer = torch.empty(max(4 * cache, 256 << 20), dtype=torch.int8, device="cuda")
        self._flush(3)
        once = seconds(self._buffer.zero_)
        torch.cuda.synchronize()
        self._writes = 1 + int(LEAD / (once[0].elapsed_time(once[1]) * 1e-3))

    def _flush(self, writes):
        for _ in range(writes):
            self._buffer.zero_()

    def time(self, variants, inputs, runs=RUNS):
        """{name: seconds of each run}, of {name: function} called with each of the inputs in turn."""
        events = {name: [] for name in variants}
        for run in range(runs):
            for name, call in variants.items():
                given = inputs[run % len(inputs)]
                self._flush(self._writes)
                events[name].append(seconds(lambda call=call, given=given: call(*given)))
            torch.cuda.synchronize()
        return {name: [a.elapsed_time(b) * 1e-3 for a, b in pairs] for name, pairs in events.items()}


def quartiles(times):
    """(lower quartile, median, upper quartile)"""
    return tuple(statistics.quantiles(times, n=4, method="inclusive"))


def measure_limits(timer):
    """What this GPU does in this run: bytes/s of a copy of 1 GiB, FLOP/s of products of 8192 x 8192 matrices."""
    source, target = (torch.ones(1 << 30, dtype=torch.int8, device="cuda") for _ in range(2))
    found = {"copy": timer.time({"copy": target.copy_}, [(source,)])["copy"]}
    limits = {"copy, bytes/s": 2 * source.nbytes / statistics.median(found["copy"])}
    del source, target
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=dtype) for _ in range(2))
        torch.mm(a, b)
        times = timer.time({"product": torch.mm}, [(a, b)], runs=10)["product"]
        limits[f"{str(dtype)[6:]}, FLOP/s"] = 2 * 8192**3 / statistics.median(times)
    return limits
