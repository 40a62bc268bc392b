"""How the CPU benchmarks measure: variants interleaved in one process, caches flushed before each call, medians."""

import ctypes
import functools
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

Call = Callable[[], object]

RESULTS: list[tuple[str, dict[str, Any]]] = []  # (case, figures), printed at the end of the run

_FLUSH = torch.zeros(32 << 20)  # 128 MiB, more than the last-level cache of a usual machine


def flush_caches() -> None:
    """Evict everything else from the CPU's caches."""
    _FLUSH.add_(1)


@functools.cache
def plain_reader() -> Callable[[torch.Tensor], int] | None:
    """Return a function that reads every byte of a tensor once, on all of torch's threads.

    None if there is no C compiler.
    """
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


def timed(call: Call) -> float:
    """Return the seconds of one call with cold caches."""
    flush_caches()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(
    benchmark: BenchmarkFixture, subject: tuple[str, Call], rivals: Mapping[str, Call], rounds: int, warm: bool = False
) -> None:
    """Benchmark `subject`, and time every rival once before each of its rounds.

    Medians and ratios are stored in `benchmark.extra_info` and :data:`RESULTS`.

    Args:
        subject: (name, call). rivals: {name: call}.
        rounds: how often each is timed. warm: leave out the warm-up call of each.
    """
    name, call = subject
    times: dict[str, list[float]] = {rival: [] for rival in rivals}

    def setup() -> None:
        for rival, rival_call in rivals.items():
            times[rival].append(timed(rival_call))
        flush_caches()

    for warm_up in () if warm else (call, *rivals.values()):
        warm_up()
    benchmark.pedantic(call, setup=setup, rounds=rounds, iterations=1)
    own = benchmark.stats.stats.median
    benchmark.extra_info[f"{name}, ms"] = round(own * 1e3, 3)
    for rival, seconds in times.items():
        median = statistics.median(seconds)
        benchmark.extra_info[f"{rival}, ms"] = round(median * 1e3, 3)
        benchmark.extra_info[f"{rival} / {name}"] = round(median / own, 2)
    RESULTS.append((benchmark.name, benchmark.extra_info))
