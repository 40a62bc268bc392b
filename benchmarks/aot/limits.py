"""The least time that a GPU's memory, instruction issue and matrix units allow: predictions, not measurements.

No kernel can be faster than the slowest of the three, and none is claimed to reach it. Two things are left out: the
time of a launch, some microseconds, and the latency of memory, which a small batch waits for.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch

from benchmarks.aot.compiled import Device, record
from benchmarks.ops.cases import Case
from benchmarks.ops.op import Op
from cdgen.hardware import GPUS


class Processor(NamedTuple):
    """How fast a GPU issues instructions."""

    multiprocessors: int  # number in the product sold, by the vendor's architecture paper (B200: by its driver)
    clock: float  # Hz, boost; the clock implied by the data sheet's rate of the matrix units


PROCESSORS = {  # memory bandwidth and matrix products of the same GPUs are in cdgen.hardware.GPUS
    "a100": Processor(108, 1.41e9),  # 80 GB
    "h100": Processor(132, 1.83e9),  # SXM
    "h200": Processor(132, 1.83e9),  # SXM
    "b200": Processor(148, 1.86e9),
}
LANES = 128  # thread-instructions that a multiprocessor issues per clock: four schedulers of 32 lanes


def count_instructions(op: Op, dtype: torch.dtype) -> tuple[int, int] | None:
    """Execute the PTX for sm_90 of a small call; return (thread-instructions, bytes), or None for matrix products."""
    case = Case(op, dtype, *op.counted)
    inputs = case.make("cpu")
    size = op.bytes(*inputs)
    if op.flops(*inputs):
        return None
    with Device(90) as device:
        op.fused(*inputs)
    return sum(launch.report.thread_instructions for launch in device.launches), size


def predict(cases: Iterable[Case]) -> list[dict[str, Any]]:
    """Return a dict per case with the least microseconds of memory, instruction issue and matrix units per GPU."""
    counted: dict[tuple[str, torch.dtype], tuple[int, int] | None] = {}
    found = []
    for case in cases:
        key = case.op.name, case.dtype
        if key not in counted:
            counted[key] = count_instructions(case.op, case.dtype)
        inputs = case.make("cpu")
        size, flops = case.op.bytes(*inputs), case.op.flops(*inputs)
        programs = sum(launch.programs for launch in record(case.op, inputs).launches)
        small = counted[key]
        instructions = None if small is None else small[0] * size / small[1]
        times = {}
        for name, processor in PROCESSORS.items():
            lanes = LANES * min(programs, processor.multiprocessors)
            issue = None if instructions is None else instructions / (lanes * processor.clock)
            matmul = flops / GPUS[name].matmul if flops and case.dtype.itemsize == 2 else None
            least = {"memory": size / GPUS[name].bandwidth, "issue": issue, "matmul": matmul}
            times[name] = {limit: seconds and round(seconds * 1e6, 3) for limit, seconds in least.items()}
        row = {"case": str(case), "entries": case.batch * case.size, "bytes": size, "flops": flops}
        found.append(row | {"instructions": instructions, "us": times})
    return found
