"""Matrix products with the weights of linear layers on the CPU: cdgen's, oneDNN's from packed weights, and torch's.

    python -m benchmarks.cpu.products [--dtype float32|bfloat16] [--rows N ...]

The layers are those of the paper's model and of SmolLM2-135M. Weights are read from memory: several copies of a layer,
together larger than the caches, take turns. "packed" is oneDNN's product, which cdgen uses for three or more rows;
"read" is a plain read of the weights. The variants are compared with float64, and then timed in turns; times are
medians. ONEDNN_MAX_CPU_ISA=AVX2 keeps oneDNN from using AVX-512.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import linear

from benchmarks.cpu.harness import plain_reader
from cdgen.models.products import Product, can_pack

# {layer: (outputs, inputs)}
LAYERS = {
    "paper, q k v": (2304, 768),
    "paper, out": (768, 768),
    "paper, gate and up": (6144, 768),
    "paper, down": (768, 3072),
    "paper, output layer": (32_000, 768),
    "SmolLM2, q k v": (960, 576),
    "SmolLM2, out": (576, 576),
    "SmolLM2, gate and up": (3072, 576),
    "SmolLM2, down": (576, 1536),
    "SmolLM2, output layer": (49_152, 576),
}
COLD = 128 << 20  # bytes of all copies of a layer, more than the last-level cache of most machines
ROUNDS = 7

Call = Callable[[int, torch.Tensor], object]  # takes the index of a copy, and inputs [M, D]


def variants(layers: list[nn.Linear]) -> dict[str, Call]:
    """Return the variants by name."""
    read = plain_reader()
    if read is None:
        sys.exit("a C compiler is needed for the plain read of the weights")
    own = [Product(layer) for layer in layers]
    weights = [layer.weight.detach() for layer in layers]
    packed = [torch.ops.mkldnn._reorder_linear_weight.default(weight, 16) for weight in weights]
    multiply = torch.ops.mkldnn._linear_pointwise.default
    return {
        "cdgen": lambda at, x: own[at](x),
        "packed": lambda at, x: multiply(x, packed[at], None, "none", [], ""),
        "torch": lambda at, x: linear(x, weights[at]),
        "read": lambda at, x: read(weights[at]),
    }


def check(calls: dict[str, Call], weight: torch.Tensor, x: torch.Tensor) -> None:
    """Assert that products with the first copy equal those in float64, up to rounding of sums and results."""
    exact = linear(x.double(), weight.double())
    allowed = torch.finfo(x.dtype).eps + x.shape[1] ** 0.5 * torch.finfo(torch.float32).eps
    for name, call in calls.items():
        if name != "read":
            error = (call(0, x) - exact).abs().max() / exact.abs().max()  # type: ignore[operator]
            assert error < allowed, f"{name} is off by {error:.2g}"


def measure(calls: dict[str, Call], x: torch.Tensor, copies: int) -> dict[str, float]:
    """Return the median seconds per product of each variant."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            for at in range(copies):
                call(at, x)
            if number:  # the first round is a warm-up, in which weights may be packed
                times[name].append((time.perf_counter() - start) / copies)
    return {name: statistics.median(own) for name, own in times.items()}


@torch.inference_mode()
def report(name: str, dtype: torch.dtype, rows: list[int]) -> None:
    """Print a line for each number of rows."""
    outputs, inputs = LAYERS[name]
    size = outputs * inputs * dtype.itemsize
    copies = -(-COLD // size)
    layers = [nn.Linear(inputs, outputs, bias=False, dtype=dtype) for _ in range(copies)]
    calls = variants(layers)
    for count in rows:
        x = torch.randn(count, inputs).to(dtype)
        check(calls, layers[0].weight, x)
        seconds = measure(calls, x, copies)
        own = seconds["cdgen"]
        others = ", ".join(f"{other} {seconds[other] / own:.2f} x" for other in ("packed", "torch", "read"))
        rates = f"{size / own / 1e9:.1f} GB/s of weights, {2 * count * outputs * inputs / own / 1e9:.0f} GFLOP/s"
        print(f"{name}, {dtype}, rows {count}: {own * 1e6:.0f} us, {rates}; {others}".replace("torch.", ""), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.cpu.products", description="Time matrix products on the CPU.")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="default: %(default)s")
    parser.add_argument(
        "--rows", type=int, nargs="+", default=[1, 2, 4, 20, 128], metavar="N", help="default: 1 2 4 20 128"
    )
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    if not can_pack(torch.empty(0, dtype=dtype)):
        sys.exit(f"nothing to compare: for {options.dtype} on this CPU, cdgen uses torch's products")
    for name in LAYERS:
        report(name, dtype, options.rows)


if __name__ == "__main__":
    main()
