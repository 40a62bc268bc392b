"""The part `sweep`: launch settings of the largest kernels, assigned to their modules' constants and timed in turns."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.check import check, runnable
from benchmarks.gpu.cold import INPUTS, Call, quartiles
from benchmarks.gpu.context import Context, in_one_line
from benchmarks.gpu.kernels import BY_NAME, dry_pair
from benchmarks.gpu.timing import Bench
from benchmarks.ops.cases import Case

LONGEST = 10  # seconds that one sweep may take, compilers included


class Sweep(NamedTuple):
    """Values of one constant of a kernels' module, for one case.

    `key`: of the constant's table, where the constant is one; the value is that of the key then.
    `given`: other constants of the module and the values that they have meanwhile.
    """

    op: str
    batch: int
    size: int
    module: str
    constant: str
    values: tuple[Any, ...]
    key: Any = None
    given: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        given = "".join(f"{name} = {value}, " for name, value in self.given)
        at = "" if self.key is None else f"[{self.key}]"
        return f"{self.op} [{self.batch}, {self.size}], {given}{self.constant}{at}"


ATTENTION, DROPOUT, GROUPED = (
    "paged_attention, " + name for name in ("12 heads", "12 heads, dropout", "32 heads on 8")
)
# Without it a version of Triton that lacks the fence would run every number of stages as one.
PIPELINED = (("HAS_FENCE", True),)
SWEEPS = [  # the least risky first: an illegal access ends the job
    Sweep("contrastive_sample, contrastive", 128, 32_000, "triton.settings", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep("contrastive_sample, ancestral", 128, 32_000, "triton.settings", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep("contrastive_sample, contrastive", 512, 32_000, "triton.settings", "THREADS", (128, 256)),
    Sweep(ATTENTION, 512, 220, "triton.attention", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep(ATTENTION, 512, 220, "triton.attention", "THREADS", (64, 128)),
    Sweep(ATTENTION, 512, 220, "triton.attention", "KEYS", (2, 4, 8), key=1),
    Sweep(ATTENTION, 16, 2048, "triton.attention", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep(DROPOUT, 512, 220, "triton.attention", "THREADS", (64, 128)),
    Sweep(GROUPED, 64, 2048, "triton.attention", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep(GROUPED, 64, 2048, "triton.attention", "MATRIX_TILE", (2048, 4096)),
    Sweep(
        "select_candidates_linear", 128, 32_000, "triton.linear", "HAS_FENCE", (False, True)
    ),  # one stage, or all of them
    Sweep("select_candidates_linear", 512, 32_000, "triton.linear", "HAS_FENCE", (False, True)),
    Sweep("select_candidates_linear", 128, 32_000, "triton.linear", "TILES", ((8, 3), (4, 3), (8, 4)), 128, PIPELINED),
    Sweep("select_candidates_linear", 64, 32_000, "triton.linear", "TILES", ((4, 3), (4, 4), (8, 3)), 64, PIPELINED),
    Sweep("select_candidates_linear", 512, 32_000, "triton.linear", "TILE_TOKENS", (128, 256)),
]


def default(sweep: Sweep) -> Any:
    found = getattr(importlib.import_module(f"cdgen_kernels.{sweep.module}"), sweep.constant)
    return found if sweep.key is None else found[sweep.key]


def with_setting(sweep: Sweep, value: Any, call: Call) -> Call:
    """`call` while the constant has another value."""

    def changed(*inputs: Any) -> Any:
        module = importlib.import_module(f"cdgen_kernels.{sweep.module}")
        constant = value if sweep.key is None else getattr(module, sweep.constant) | {sweep.key: value}
        with mock.patch.multiple(module, **dict(sweep.given), **{sweep.constant: constant}):
            return call(*inputs)

    return changed


def case_of(sweep: Sweep, dry: bool) -> Case:
    pair = dry_pair(sweep.op) if dry else (sweep.batch, sweep.size)
    return Case(BY_NAME[sweep.op], torch.bfloat16, *pair)


def run(context: Context, bench: Bench, sweep: Sweep) -> None:
    """Check every value against the definition, then time those that are right beside one another."""
    case, own, right = case_of(sweep, context.dry), default(sweep), {}
    for value in dict.fromkeys((own, *sweep.values)):
        with context.case(f"{sweep} = {value}") as found:
            call = with_setting(sweep, value, runnable(case.op, context.device))
            try:
                found |= check(case, context.device, call).as_result()
            except OutOfResources as error:
                found |= {"status": "skipped", "failure": in_one_line(error)}
        if found["status"] == "ok":
            right[str(value)] = call
    inputs = [case.make(context.device, seed) for seed in range(INPUTS)]
    times = bench.timer.time(right, inputs)
    spread = {value: quartiles(seconds) for value, seconds in times.items()}
    shown = ", ".join(f"{value}: {median * 1e6:.1f} us" for value, (_, median, _) in spread.items())
    context.record("swept", name=str(sweep), default=own, quartiles=spread, line=f"{sweep} = {shown}")


def sweep_job(context: Context) -> None:
    bench = Bench(context)
    names = [f"{sweep} = {value}" for sweep in SWEEPS for value in dict.fromkeys((default(sweep), *sweep.values))]
    context.plan(names)
    for sweep in SWEEPS:
        if context.left < LONGEST:
            return
        run(context, bench, sweep)


JOBS: dict[str, Callable[[Context], None]] = {"kernels": sweep_job}
