"""Run the comparison: check every variant's tokens, then time all variants of a case in turns."""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cdgen.bench.check import check_draws, fault_of_fused, fault_of_rival
from cdgen.bench.logits import make_pair
from cdgen.bench.methods import FUSED, METHODS, Method
from cdgen.bench.rivals import Rival
from cdgen.bench.timing import RUNS, ClockTimer, ColdTimer, Timer, copy_bandwidth, quartiles
from cdgen.environment import versions
from cdgen.errors import first_line
from cdgen_kernels import implementation

INPUTS = 3  # sets of logits, used in turns
SECONDS = 4.0  # for the timed calls of a case; slow variants are called less often
FEWEST_RUNS = 5

Logits = tuple[torch.Tensor, torch.Tensor]  # GOOD's and BAD's, [B, V] each


@dataclass(frozen=True)
class Timed:
    """The times of one variant of a case."""

    name: str
    seconds: tuple[float, float, float]  # lower quartile, median, upper quartile
    ratio: float | None  # median divided by that of the op; None if the op's result was wrong
    share_of_copy: float  # least bytes to read per second of the median, divided by the bytes/s of a copy


@dataclass(frozen=True)
class Case:
    """One method at one size."""

    method: str
    dtype: str
    batch: int
    vocab_size: int
    least_bytes: int  # GOOD's logits, read once
    runs: int
    timed: list[Timed]
    absent: dict[str, str]  # variants that did not run, or drew wrong tokens, and why

    def lines(self) -> Iterator[str]:
        """Yield the rows of a table."""
        yield f"{self.method}, {self.dtype} [{self.batch}, {self.vocab_size}], {self.runs} runs"
        width = max(map(len, (*(one.name for one in self.timed), *self.absent)))
        yield f"  {'':{width}}  {'median':>10}  {'quartiles':>19}  {'ratio':>6}  {'of copy':>8}"
        for one in self.timed:
            low, median, high = (f"{1e3 * seconds:.3f}" for seconds in one.seconds)
            share = f"{one.share_of_copy:.1%}" if one.share_of_copy < 0.1 else f"{one.share_of_copy:.0%}"
            ratio = "-" if one.ratio is None else f"{one.ratio:.1f}x"
            yield f"  {one.name:{width}}  {median:>7} ms  {f'{low} .. {high}':>19}  {ratio:>6}  {share:>8}"
        for name, reason in self.absent.items():
            yield f"  {name:{width}}  {reason}"


class Bench:
    """Compares all methods on one device.

    Args:
        device: the device.
        dtype: dtype of the logits.
    Attributes:
        copy: measured bytes/s of a copy.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # the timer's events and buffer are on the current device
        self._device, self._dtype = device, dtype
        self._timer: Timer = ColdTimer() if device.type == "cuda" else ClockTimer()
        self._faults: dict[tuple[str, str], str | None] = {}  # the keys are (method, variant)
        self.copy = copy_bandwidth(self._timer, device)

    def environment(self) -> dict[str, Any]:
        """Return what the figures depend on."""
        name, reason = implementation(self._device.type)
        return {
            "versions": versions(),
            "device": self._device_name(),
            "threads": torch.get_num_threads(),
            "load average": os.getloadavg()[0],
            "implementation": name,
            "reason": reason,
            "copy, bytes/s": self.copy,
        }

    def _device_name(self) -> str:
        if self._device.type == "cuda":
            return torch.cuda.get_device_name(self._device)
        return f"CPU ({torch.backends.cpu.get_cpu_capability()})"

    def cases(self, batches: Sequence[int], vocab_sizes: Sequence[int]) -> Iterator[Case]:
        """Measure and yield every method at every size."""
        for method in METHODS:
            for vocab_size in vocab_sizes:
                for batch in batches:
                    yield self.case(method, batch, vocab_size)

    def case(self, method: Method, batch: int, vocab_size: int) -> Case:
        """Check and time one method at one size."""
        inputs = [make_pair(batch, vocab_size, self._dtype, self._device, seed) for seed in range(INPUTS)]
        sampling = method.sampling(batch, self._device)
        torch.compiler.reset()  # a function that was compiled for several shapes would run uncompiled
        first, eager = next(iter(method.rivals.items()))
        compiled: Rival = torch.compile(eager, dynamic=False)
        variants = {FUSED: method.fused(sampling), **method.rivals, f"{first}, torch.compile": compiled}
        running, absent, seconds = {}, {}, 0.0
        for name, call in variants.items():
            try:
                fault, spent = self._try(method, name, call, inputs[0])
            except Exception as error:  # libraries that are absent or cannot run here fail in many ways
                if name == FUSED:
                    raise
                absent[name] = "not installed" if isinstance(error, ImportError) else f"cannot run: {first_line(error)}"
                continue
            if fault:
                absent[name] = f"wrong result, not timed: {fault}"
            else:
                running[name], seconds = call, seconds + spent
        runs = min(max(int(SECONDS / seconds), FEWEST_RUNS), RUNS) if running else 0
        times = self._timer.time(running, inputs, runs) if running else {}
        least_bytes = inputs[0][0].nbytes
        timed = self._figures(times, least_bytes)
        return Case(method.name, str(self._dtype)[6:], batch, vocab_size, least_bytes, runs, timed, absent)

    def _try(self, method: Method, name: str, call: Rival, inputs: Logits) -> tuple[str | None, float]:
        """Call a variant twice; return what is wrong with its tokens, None if nothing, and the seconds of a call."""
        good, bad = inputs
        sampling = method.sampling(len(good), self._device)
        tokens = call(good, bad)  # compiles
        start = time.perf_counter()
        tokens = call(good, bad)
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - start
        if name == FUSED:
            fault = fault_of_fused(tokens, good, bad if method.has_bad else None, sampling)
        else:
            fault = fault_of_rival(tokens, good, bad, sampling)
        return fault or self._fault_of_draws(method, name, call), seconds

    def _fault_of_draws(self, method: Method, name: str, call: Rival) -> str | None:
        """Return what is wrong with the frequencies of a variant's draws, which are checked once."""
        if "torch.compile" in name:  # compiling it for another shape would take long; the program is that of eager
            return None
        key = method.name, name
        if key not in self._faults:
            self._faults[key] = check_draws(method, name, call, self._dtype, self._device)
        return self._faults[key]

    def _figures(self, times: dict[str, list[float]], least_bytes: int) -> list[Timed]:
        medians = {name: statistics.median(seconds) for name, seconds in times.items()}
        own = medians.get(FUSED)
        return [
            Timed(name, quartiles(times[name]), own and median / own, least_bytes / median / self.copy)
            for name, median in medians.items()
        ]


def as_json(bench: Bench, cases: Sequence[Case]) -> dict[str, Any]:
    """Return the results as JSON values."""
    return {"environment": bench.environment(), "cases": [asdict(case) for case in cases]}
