"""How everything here is timed: variants interleaved in one process, caches flushed before each call, medians."""

import ctypes
import functools
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import torch

RESULTS = []  # (case, figures), printed when the run ends

_FLUSH = torch.zeros(32 << 20)  # 128 MiB, more than any last-level cache of the machines meant


def flush_caches():
    _FLUSH.add_(1)


@functools.cache
def plain_reader():
    """read(tensor): every byte once, on all of torch's threads; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    library = Path(tempfile.mkdtemp()) / "plain_read.so"
    source = Path(__file__).with_name("plain_read.c")
    flags = ["-O3", "-funroll-loops", "-march=native", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, source], check=True)
    function = ctypes.CDLL(str(library)).plain_read
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_int64], ctypes.c_uint64
    return lambda x: function(x.data_ptr(), x.nbytes // 8)


def timed(call):
    """Seconds of one cold call."""
    flush_caches()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(benchmark, subject, rivals, rounds):
    """Benchmark `subject` with every rival timed once before each of its rounds; medians and ratios as extra_info.

    Args:
        subject: (name, call). rivals: {name: call}. rounds: how often each is timed, after one warm-up each.
    """
    name, call = subject
    times = {rival: [] for rival in rivals}

    def setup():
        for rival, rival_call in rivals.items():
            times[rival].append(timed(rival_call))
        flush_caches()

    for warm_up in (call, *rivals.values()):
        warm_up()
    benchmark.pedantic(call, setup=setup, rounds=rounds, iterations=1)
    own = benchmark.stats.stats.median
    benchmark.extra_info[f"{name}, ms"] = round(own * 1e3, 3)
    for rival, seconds in times.items():
        median = statistics.median(seconds)
        benchmark.extra_info[f"{rival}, ms"] = round(median * 1e3, 3)
        benchmark.extra_info[f"{rival} / {name}"] = round(median / own, 2)
    RESULTS.append((benchmark.name, benchmark.extra_info))
