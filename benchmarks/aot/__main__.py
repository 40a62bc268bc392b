"""Compile every kernel for sm_80, sm_90, sm_100 and gfx942 without a GPU; print resources and predicted times.

    python -m benchmarks.aot [--json FILE]

Triton caches the compiled kernels, so a second run takes a fraction of the time of the first.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import triton

from benchmarks.aot.compiled import Row, compile_all
from benchmarks.aot.limits import PROCESSORS, predict
from benchmarks.ops.cases import cases
from cdgen.hardware import GPUS


def aligned(table: Iterable[Sequence[object]]) -> str:
    """Format rows of cells as lines of text: the first column aligned to the left, the others to the right."""
    rows = [[str(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def describe_kernels(rows: Iterable[Row]) -> str:
    """Return the table of compiled kernels."""
    heading = ["target", "registers", "spill", "stack", "shared", "load", "launches"]
    lines: list[list[object]] = [["kernel and the first case that launches it", *heading]]
    for row in rows:
        r = row.resources
        launches = f"{row.launches}" + (f" + {row.torch_ops} of torch" if row.torch_ops else "")
        load = r.width(row.streams) or "-"
        lines.append([f"{row.kernel}: {row.case}", row.target, r.registers, r.spill, r.stack, r.shared, load, launches])
    return aligned(lines)


def describe_predictions(found: Iterable[dict[str, Any]]) -> str:
    """Return the table of predictions."""

    def cell(times: dict[str, float | None]) -> str:
        return " / ".join("-" if t is None else f"{t:.1f}" for t in times.values())

    lines = [["case", "MB", "GFLOP", "instructions per entry", *PROCESSORS]]
    for row in found:
        counted = "-" if row["instructions"] is None else f"{row['instructions'] / row['entries']:.1f}"
        sizes = [f"{row['bytes'] / 1e6:.1f}", f"{row['flops'] / 1e9:.1f}"]
        lines.append([row["case"], *sizes, counted, *(cell(times) for times in row["us"].values())])
    sheet = "; ".join(
        f"{name} {GPUS[name].bandwidth / 1e12:g} TB/s, {x.multiprocessors} multiprocessors at {x.clock / 1e9:g} GHz, "
        f"{GPUS[name].matmul / 1e12:g} TFLOP/s"
        for name, x in PROCESSORS.items()
    )
    return (
        "PREDICTION, not measured: least microseconds by memory / instruction issue / matrix units, without launches.\n"
        f"From data sheets: {sheet}.\n"
        "Instructions: counted by executing the PTX for sm_90 on a small batch.\n\n" + aligned(lines)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="benchmarks.aot", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to FILE")
    options = parser.parse_args(arguments)
    wanted = [case for case in cases() if case.op.compiled]
    rows = compile_all(wanted)
    print(f"Compiled by Triton {triton.__version__}; nothing was run. Spill (on AMD: vector registers), stack, shared")
    print("and load are in bytes; load is a thread's widest load from the tensors that the kernel reads most.\n")
    print(describe_kernels(rows))
    print()
    predictions = predict([case for case in wanted if case.batch == case.op.batches[0]])
    print(describe_predictions(predictions))
    if options.json:
        data = {
            "triton": triton.__version__,
            "kernels": [{**row._asdict(), "resources": asdict(row.resources)} for row in rows],
        }
        options.json.write_text(json.dumps(data | {"predictions": predictions}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
