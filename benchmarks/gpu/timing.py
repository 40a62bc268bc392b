"""Times a case beside its rivals, and relates the times to the limits measured in the same process."""

from typing import Any

import torch

from benchmarks.gpu.check import check, runnable
from benchmarks.gpu.cold import INPUTS, Call, Timer, measure_limits, quartiles, timer_for
from benchmarks.gpu.context import Context, in_one_line
from benchmarks.gpu.records import Record
from benchmarks.ops.cases import Case
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
        """The limits in one line."""
        rates = ", ".join(f"{name.split(',')[0]} {rate / 1e12:.3g}" for name, rate in self.limits.items())
        return f"measured, TB/s and TFLOP/s: {rates}"

    def case(self, case: Case, found: Record, rivals: dict[str, Call] | None = None) -> None:
        """Check the case, then time it beside its rivals, or beside those given. A wrong result is not timed."""
        found |= {"op": case.op.name, "dtype": str(case.dtype)[6:], "batch": case.batch, "size": case.size}
        found |= check(case, self.context.device).as_result()
        if found["status"] != "ok":
            return
        device = self.context.device
        inputs = [case.make(device, seed) for seed in range(INPUTS)]
        variants = {"fused": runnable(case.op, device)} | (rivals or {"torch eager": case.op.eager} | case.op.rivals)
        running, absent = able(variants, inputs[0], device)
        found |= self.figures(case, self.timer.time(running, inputs), inputs[0]) | {"absent": absent}

    def figures(self, case: Case, times: dict[str, list[float]], inputs: tuple) -> dict[str, Any]:
        """Quartiles, ratios to "fused", and the shares of the measured limits that it reaches."""
        spread = {name: quartiles(seconds) for name, seconds in times.items()}
        own = spread["fused"][1]
        size, flops = case.op.bytes(*inputs), case.op.flops(*inputs)
        ratios = {name: median / own for name, (_, median, _) in spread.items() if name != "fused"}
        found = {"seconds, quartiles": spread, "times fused": ratios, "bytes": size, "bytes/s": size / own}
        found["of copy"] = size / own / self.limits["copy, bytes/s"]
        near = f"{found['of copy']:.0%} of copy"
        if flops:
            rate = self.limits[f"{str(case.dtype)[6:]}, FLOP/s"]
            found |= {"flops": flops, "FLOP/s": flops / own, "of matmul": flops / own / rate}
            near += f", {found['of matmul']:.0%} of matmul"
        least = least_seconds(self.sheet, size, flops)
        found |= {"data sheet, seconds": least}
        bound = f", sheet {least * 1e6:.1f}" if least else ""
        rivals = ", ".join(f"{name} takes {ratio:.2f}x" for name, ratio in ratios.items())
        return found | {
            "line": f"{case.op.name} [{case.batch}, {case.size}]: {own * 1e6:.1f} us{bound}; {near}; {rivals}"
        }


def least_seconds(sheet: Machine | None, size: float, flops: float) -> float | None:
    """The least time to move `size` bytes and to do `flops` operations in 16-bit products, whichever is longer."""
    return sheet and max(size / sheet.bandwidth, flops / sheet.matmul)


def able(variants: dict[str, Call], inputs: tuple, device: torch.device) -> tuple[dict[str, Call], dict[str, str]]:
    """(those that ran once, {name: why not} of the others). The op itself has to run."""
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
