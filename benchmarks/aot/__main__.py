"""Every kernel compiled for sm_80, sm_90, sm_100 and gfx942 without a GPU: what it takes, and what the limits allow.

    python -m benchmarks.aot [--json FILE]

The compiled kernels are kept in Triton's cache, so that a second run takes a fraction of the first.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import triton

from benchmarks.aot.compiled import compile_all
from benchmarks.aot.limits import LIMITS, predict
from benchmarks.ops.cases import cases


def aligned(table):
    """Lines of text from rows of cells, the first row its heading; numbers to the right."""
    table = [[str(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(n) if i == 0 else cell.rjust(n) for i, (cell, n) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    )


def describe_kernels(rows):
    """The table of compiled kernels."""
    heading = ["target", "registers", "spill", "stack", "shared", "load", "launches"]
    lines = [["kernel and the first case that launches it", *heading]]
    for row in rows:
        r = row.resources
        launches = f"{row.launches}" + (f" + {row.torch_ops} of torch" if row.torch_ops else "")
        load = r.width(row.streams) or "-"
        lines.append([f"{row.kernel}: {row.case}", row.target, r.registers, r.spill, r.stack, r.shared, load, launches])
    return aligned(lines)


def describe_predictions(found):
    """The table of predictions."""

    def cell(times):
        return " / ".join("-" if t is None else f"{t:.1f}" for t in times.values())

    lines = [["case", "MB", "GFLOP", "instructions an entry", *LIMITS]]
    for row in found:
        counted = "-" if row["instructions"] is None else f"{row['instructions'] / row['entries']:.1f}"
        sizes = [f"{row['bytes'] / 1e6:.1f}", f"{row['flops'] / 1e9:.1f}"]
        lines.append([row["case"], *sizes, counted, *(cell(of) for of in row["us"].values())])
    sheet = "; ".join(
        f"{name} {x.bandwidth / 1e12:g} TB/s, {x.multiprocessors} multiprocessors at {x.clock / 1e9:g} GHz, "
        f"{x.matmul / 1e12:g} TFLOP/s"
        for name, x in LIMITS.items()
    )
    return (
        "PREDICTION, not measured: least microseconds by memory / instruction issue / matrix units, launch left out.\n"
        f"From data sheets: {sheet}.\nInstructions: executed PTX for sm_90, of a small batch.\n\n" + aligned(lines)
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="benchmarks.aot", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there")
    options = parser.parse_args(arguments)
    wanted = [case for case in cases() if case.op.compiled]
    rows = compile_all(wanted)
    print(
        f"Compiled by Triton {triton.__version__}; nothing was run. Spill (on AMD: vector registers), stack, shared and"
    )
    print("load in bytes; load is the widest load of a thread from what the kernel reads most of.\n")
    print(describe_kernels(rows))
    print()
    predictions = predict([case for case in wanted if case.batch == case.op.batches[0]])
    print(describe_predictions(predictions))
    if options.json:
        data = {
            "triton": triton.__version__,
            "kernels": [{**row._asdict(), "resources": asdict(row.resources)} for row in rows],
        }
        options.json.write_text(json.dumps(data | {"predictions": predictions}, indent=1))


if __name__ == "__main__":
    main()
