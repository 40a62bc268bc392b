"""What a GPU's memory, instruction issue and matrix units allow at best: predictions from data sheets, no measurements.

No kernel can be faster than the slowest of the three; none is said to reach it. The time to launch, some microseconds,
and the latency of memory, which a small batch waits for, are left out.
"""

from typing import NamedTuple

from benchmarks.aot.compiled import Device, record
from benchmarks.ops.cases import Case


class Limits(NamedTuple):
    bandwidth: float  # bytes/s of memory; vendor's data sheet
    multiprocessors: int  # of the product sold; vendor's architecture paper (B200: what the driver reports)
    clock: float  # Hz, boost; the one that the data sheet's rate of the matrix units implies
    matmul: float  # FLOP/s, dense, 16-bit inputs; vendor's data sheet


LIMITS = {
    "A100 80GB": Limits(2.039e12, 108, 1.41e9, 312e12),
    "H100 SXM": Limits(3.35e12, 132, 1.83e9, 989e12),
    "H200 SXM": Limits(4.8e12, 132, 1.83e9, 989e12),
    "B200": Limits(8e12, 148, 1.86e9, 2250e12),
}
LANES = 128  # thread-instructions that a multiprocessor issues in a clock: four schedulers of 32 lanes


def count_instructions(op, dtype):
    """(thread-instructions, bytes) of a small call: the op's PTX for sm_90, executed. None for matrix products."""
    case = Case(op, dtype, *op.counted)
    inputs = case.make("cpu")
    size = op.bytes(*inputs)
    if op.flops(*inputs):
        return None
    with Device(90) as device:
        op.fused(*inputs)
    return sum(launch.report.thread_instructions for launch in device.launches), size


def predict(cases):
    """A dict for each case: on each GPU, the least microseconds of memory, instruction issue and matrix units."""
    counted, found = {}, []
    for case in cases:
        key = case.op.name, case.dtype
        if key not in counted:
            counted[key] = count_instructions(case.op, case.dtype)
        inputs = case.make("cpu")
        size, flops = case.op.bytes(*inputs), case.op.flops(*inputs)
        programs = sum(launch.programs for launch in record(case.op, inputs).launches)
        instructions = counted[key] and counted[key][0] * size / counted[key][1]
        times = {}
        for name, gpu in LIMITS.items():
            lanes = LANES * min(programs, gpu.multiprocessors)
            issue = instructions and instructions / (lanes * gpu.clock)
            matmul = flops / gpu.matmul if flops and case.dtype.itemsize == 2 else None
            least = {"memory": size / gpu.bandwidth, "issue": issue, "matmul": matmul}
            times[name] = {limit: seconds and round(seconds * 1e6, 3) for limit, seconds in least.items()}
        row = {"case": str(case), "entries": case.batch * case.size, "bytes": size, "flops": flops}
        found.append(row | {"instructions": instructions, "us": times})
    return found
