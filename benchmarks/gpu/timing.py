"""Time a case and its rivals, and compare the times with limits measured in the same process."""

import torch

from benchmarks.gpu.check import check, runnable
from benchmarks.gpu.cold import INPUTS, Timer, measure_limits, timer_for
from benchmarks.gpu.context import Context, in_one_line
from benchmarks.gpu.records import Record
from benchmarks.ops.cases import Case
from benchmarks.ops.op import Inputs
from cdgen.bench.timing import Call, Times, quartiles
from cdgen.hardware import Machine, data_sheet


class Bench:
    """The timer, the measured limits and the data sheet of a job."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.timer: Timer = timer_for(context.device)
        size, width = (1 << 20, 64) if context.dry else (1 << 30, 8192)
        self.limits = measure_limits(self.timer, context.device, size, width)
        self.sheet = data_sheet(context.device)
        context.record("limits", limits=self.limits)

    def describe(self) -> str:
        """Return the limits in one line."""
        rates = ", ".join(f"{name.split(',')[0]} {rate / 1e12:.3g}" for name, rate in self.limits.items())
        return f"measured, TB/s and TFLOP/s: {rates}"

    def case(self, case: Case, found: Record, rivals: dict[str, Call] | None = None) -> None:
        """Check the case, then time it and its rivals, and add the figures to `found`. A wrong result is not timed.

        Args:
            rivals: rivals to use instead of the op's own.
        """
        found |= {"op": case.op.name, "dtype": str(case.dtype)[6:], "batch": case.batch, "size": case.size}
        found |= check(case, self.context.device).as_result()
        if found["status"] != "ok":
            return
        device = self.context.device
        inputs = [case.make(device, seed) for seed in range(INPUTS)]
        variants = {"fused": runnable(case.op, device)} | (rivals or {"torch eager": case.op.eager} | case.op.rivals)
        running, absent = runnable_variants(variants, inputs[0], device)
        found |= self.figures(case, self.timer.time(running, inputs), inputs[0]) | {"absent": absent}

    def figures(self, case: Case, times: Times, inputs: Inputs) -> Record:
        """Return quartiles, ratios to "fused", and the shares of the measured limits that "fused" reaches."""
        spread = {name: quartiles(seconds) for name, seconds in times.items()}
        own = spread["fused"][1]
        size, flops = case.op.bytes(*inputs), case.op.flops(*inputs)
        ratios = {name: median / own for name, (_, median, _) in spread.items() if name != "fused"}
        found: Record = {"seconds, quartiles": spread, "ratio to fused": ratios, "bytes": size, "bytes/s": size / own}
        found["share of copy"] = size / own / self.limits["copy, bytes/s"]
        near = f"{found['share of copy']:.0%} of copy"
        if flops:
            rate = self.limits[f"{str(case.dtype)[6:]}, FLOP/s"]
            found |= {"flops": flops, "FLOP/s": flops / own, "share of matmul": flops / own / rate}
            near += f", {found['share of matmul']:.0%} of matmul"
        minimum = minimum_seconds(self.sheet, size, flops)
        found |= {"data sheet, seconds": minimum}
        bound = f", data sheet {minimum * 1e6:.1f}" if minimum else ""
        rivals = ", ".join(f"{name} takes {ratio:.2f}x" for name, ratio in ratios.items())
        return found | {
            "line": f"{case.op.name} [{case.batch}, {case.size}]: {own * 1e6:.1f} us{bound}; {near}; {rivals}"
        }


def minimum_seconds(sheet: Machine | None, size: float, flops: float) -> float | None:
    """Return the least time to move `size` bytes or to do `flops` operations in 16-bit products, the longer of both."""
    return None if sheet is None else max(size / sheet.bandwidth, flops / sheet.matmul)


def runnable_variants(
    variants: dict[str, Call], inputs: Inputs, device: torch.device
) -> tuple[dict[str, Call], dict[str, str]]:
    """Call every variant once. Return those that ran, and {name: reason} of the others.

    An exception of the variant "fused" is not caught.
    """
    running, absent = {}, {}
    for name, call in variants.items():
        try:
            call(*inputs)
            if device.type == "cuda":
                torch.cuda.synchronize()
            running[name] = call
        except Exception as error:
            if name == "fused":
                raise
            absent[name] = in_one_line(error)
    return running, absent
