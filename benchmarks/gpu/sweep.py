"""The part `sweep`: time launch settings of the largest kernels, by changing constants of their modules."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar
from unittest import mock

import torch
from triton.runtime.errors import OutOfResources

from benchmarks.gpu.check import check, runnable
from benchmarks.gpu.cold import INPUTS
from benchmarks.gpu.context import Context, in_one_line
from benchmarks.gpu.kernels import BY_NAME, dry_pair
from benchmarks.gpu.timing import Bench
from benchmarks.ops.cases import Case
from cdgen.bench.timing import Call, quartiles

R = TypeVar("R")
LONGEST = 10  # seconds that one sweep may take, including compilers


class Sweep(NamedTuple):
    """Values to try for one constant of a module, for one case.

    Attributes:
        module: name within cdgen_kernels.
        key: if the constant is a dict, the key whose value is changed.
        fixed: other constants of the module, with the values that they have during the sweep.
    """

    op: str
    batch: int
    size: int
    module: str
    constant: str
    values: tuple[Any, ...]
    key: Any = None
    fixed: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        fixed = "".join(f"{name} = {value}, " for name, value in self.fixed)
        key = "" if self.key is None else f"[{self.key}]"
        return f"{self.op} [{self.batch}, {self.size}], {fixed}{self.constant}{key}"


ATTENTION, DROPOUT, GROUPED, SHARED = (
    "paged_attention, " + name
    for name in ("12 heads", "12 heads, dropout", "32 heads, 8 KV heads", "shared prefixes, 32 heads, 8 KV heads")
)
# Without this, a version of Triton that lacks the fence would use one stage, whatever the setting.
PIPELINED = (("HAS_FENCE", True),)
SWEEPS = [  # the least risky first, since an illegal access ends the job
    Sweep("contrastive_sample, contrastive", 128, 32_000, "triton.settings", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep("contrastive_sample, ancestral", 128, 32_000, "triton.settings", "PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep("contrastive_sample, contrastive", 512, 32_000, "triton.settings", "THREADS", (128, 256)),
    Sweep(ATTENTION, 512, 220, "triton.settings", "ATTENTION_PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep(ATTENTION, 512, 220, "triton.attention", "THREADS", (64, 128)),
    Sweep(ATTENTION, 512, 220, "triton.attention", "KEYS", (2, 4, 8), key=1),
    Sweep(ATTENTION, 16, 2048, "triton.settings", "ATTENTION_PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep(DROPOUT, 512, 220, "triton.attention", "THREADS", (64, 128)),
    Sweep(GROUPED, 64, 2048, "triton.settings", "ATTENTION_PROGRAMS_PER_MULTIPROCESSOR", (4, 8, 12)),
    Sweep(GROUPED, 64, 2048, "triton.attention", "MATRIX_TILE", (2048, 4096)),
    Sweep(SHARED, 64, 608, "triton.shared_attention", "TOKENS", (4, 8, 16, 32)),
    Sweep(SHARED, 64, 608, "triton.block_attention", "PROGRAMS_PER_MULTIPROCESSOR", (1, 2, 4)),
    Sweep(
        "select_candidates_linear", 128, 32_000, "triton.linear", "HAS_FENCE", (False, True)
    ),  # one stage, or several
    Sweep("select_candidates_linear", 512, 32_000, "triton.linear", "HAS_FENCE", (False, True)),
    Sweep("select_candidates_linear", 128, 32_000, "triton.linear", "TILES", ((8, 3), (4, 3), (8, 4)), 128, PIPELINED),
    Sweep("select_candidates_linear", 64, 32_000, "triton.linear", "TILES", ((4, 3), (4, 4), (8, 3)), 64, PIPELINED),
    Sweep("select_candidates_linear", 512, 32_000, "triton.linear", "TILE_TOKENS", (128, 256)),
]


def default(sweep: Sweep) -> Any:
    """Return the current value of the sweep's constant."""
    found = getattr(importlib.import_module(f"cdgen_kernels.{sweep.module}"), sweep.constant)
    return found if sweep.key is None else found[sweep.key]


def with_setting(sweep: Sweep, value: Any, call: Callable[..., R]) -> Callable[..., R]:
    """Return `call` with another value of the constant."""

    def changed(*inputs: Any) -> R:
        module = importlib.import_module(f"cdgen_kernels.{sweep.module}")
        constant = value if sweep.key is None else getattr(module, sweep.constant) | {sweep.key: value}
        with mock.patch.multiple(module, **dict(sweep.fixed), **{sweep.constant: constant}):
            return call(*inputs)

    return changed


def case_of(sweep: Sweep, dry: bool) -> Case:
    """Return the case that a sweep times."""
    pair = dry_pair(sweep.op) if dry else (sweep.batch, sweep.size)
    return Case(BY_NAME[sweep.op], torch.bfloat16, *pair)


def run_sweep(context: Context, bench: Bench, sweep: Sweep) -> None:
    """Check the results for every value, then time the correct ones in turns."""
    case, own = case_of(sweep, context.dry), default(sweep)
    correct: dict[str, Call] = {}
    for value in dict.fromkeys((own, *sweep.values)):
        with context.case(f"{sweep} = {value}") as found:
            call = with_setting(sweep, value, runnable(case.op, context.device))
            try:
                found |= check(case, context.device, call).as_result()
            except OutOfResources as error:
                found |= {"status": "skipped", "failure": in_one_line(error)}
        if found["status"] == "ok":
            correct[str(value)] = call
    inputs = [case.make(context.device, seed) for seed in range(INPUTS)]
    times = bench.timer.time(correct, inputs)
    spread = {value: quartiles(seconds) for value, seconds in times.items()}
    shown = ", ".join(f"{value}: {median * 1e6:.1f} us" for value, (_, median, _) in spread.items())
    context.record("swept", name=str(sweep), default=own, quartiles=spread, line=f"{sweep} = {shown}")


def sweep_job(context: Context) -> None:
    """Run all sweeps, as long as there is time."""
    bench = Bench(context)
    names = [f"{sweep} = {value}" for sweep in SWEEPS for value in dict.fromkeys((default(sweep), *sweep.values))]
    context.plan(names)
    for sweep in SWEEPS:
        if context.left < LONGEST:
            return
        run_sweep(context, bench, sweep)


JOBS: dict[str, Callable[[Context], None]] = {"kernels": sweep_job}
