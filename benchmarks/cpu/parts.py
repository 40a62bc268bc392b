"""Where the time of a step on the CPU is spent, and how close each part comes to the limits of the machine.

    python -m benchmarks.cpu.parts [SEQUENCES [LENGTH]]          (default: 128 220)

The paper's pair (GOOD, and an early checkpoint as BAD), float32. Every part is timed inside real steps. The limits are
measured between the steps: the rate of a large square matrix product, and of a plain read of 256 MiB. The best
measurement of each is taken. A C compiler is needed.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import cdgen.engine.pair_runner
import cdgen.models.llama
from benchmarks.cpu.harness import plain_reader
from benchmarks.generation import EngineLoop, random_model, sampling_params
from cdgen.models.products import Product

PAPER = (12, 768, 12, 3072)
PARTS: dict[Any, tuple[str, ...]] = {
    Product: ("__call__",),
    cdgen.models.llama: ("paged_attention", "rope_and_store", "add_rms_norm", "silu_mul"),
    cdgen.engine.pair_runner: ("select_candidates", "gather_logits", "sample_candidates"),
}
ROUNDS = 7


class Rates(NamedTuple):
    """What the machine can do."""

    flops: float  # FLOP/s of a matrix product
    bandwidth: float  # bytes/s of a read


class Bound(NamedTuple):
    """The least time of a part."""

    seconds: float
    limit: str  # what takes that time


def measure_rates() -> Rates:
    """Return the best rates of three measurements."""
    x, block, read = torch.ones(2048, 2048), torch.ones(64 << 20), plain_reader()
    if read is None:
        sys.exit("a C compiler is needed")
    products, reads = [], []
    for _ in range(3):
        start = time.perf_counter()
        x @ x
        between = time.perf_counter()
        read(block)
        products.append(between - start)
        reads.append(time.perf_counter() - between)
    return Rates(2 * 2048**3 / min(products), block.nbytes / min(reads))


def timed(function: Callable[..., Any], name: str, spent: dict[str, float]) -> Callable[..., Any]:
    """Return `function`, which now adds its seconds to `spent[name]`."""

    def call(*arguments: Any, **options: Any) -> Any:
        start = time.perf_counter()
        result = function(*arguments, **options)
        spent[name] += time.perf_counter() - start
        return result

    return call


def bounds(weights: int, sequences: int, length: int, rates: Rates) -> dict[str, Bound]:
    """Return the least time per step of each part that has a known limit.

    Args:
        weights: number of weights in the layers of both models and in GOOD's output layer.
    """
    layers, width, _, intermediate = PAPER
    values = sequences * width  # values of the hidden states
    cache = 2 * 2 * layers * 4 * values * (length + 4)  # keys and values of both models, halfway through the steps
    return {
        "products": max(
            Bound(2 * sequences * weights / rates.flops, "the matrix rate"),
            Bound(4 * weights / rates.bandwidth, "a plain read of the weights"),
        ),
        "paged_attention": Bound(cache / rates.bandwidth, "a plain read of the cache"),
        "rope_and_store": Bound(2 * layers * values * 4 * 7 / rates.bandwidth, "reading and writing once"),
        "add_rms_norm": Bound(2 * (2 * layers + 1) * values * 4 * 4 / rates.bandwidth, "reading and writing once"),
        "silu_mul": Bound(2 * layers * sequences * intermediate * 4 * 3 / rates.bandwidth, "reading and writing once"),
    }


def measure_step(sequences: int, length: int) -> None:
    """Time real steps and print the share of each part."""
    pair = [random_model(*PAPER, seed=seed) for seed in (0, 1)]
    loop = EngineLoop(pair[0], pair[1], sampling_params())
    loop.start_at(sequences, length)
    loop.step()
    spent: dict[str, float] = defaultdict(float)
    for owner, names in PARTS.items():
        for name in names:
            setattr(owner, name, timed(getattr(owner, name), "products" if owner is Product else name, spent))
    steps, measured = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        loop.step()
        steps.append(time.perf_counter() - start)
        measured.append(measure_rates())
    step = sum(steps) / ROUNDS
    rates = Rates(*map(max, zip(*measured, strict=True)))
    matrices = [x for model in pair for x in model.module.model.layers.parameters() if x.dim() == 2]
    weights = sum(x.numel() for x in (*matrices, pair[0].module.lm_head.weight))
    least = bounds(weights, sequences, length, rates)
    print(f"{sequences} sequences of {length} tokens: {step * 1e3:.1f} ms per step")
    print(f"measured between steps: {rates.flops / 1e9:.0f} GFLOP/s, {rates.bandwidth / 1e9:.1f} GB/s")
    for name, total in spent.items():
        seconds = total / ROUNDS
        share = f"{least[name].seconds / seconds:.0%} of {least[name].limit}" if name in least else ""
        print(f"{name:>24}  {seconds * 1e3:8.2f} ms  {seconds / step:6.1%}  {share}")
    rest = step - sum(spent.values()) / ROUNDS
    print(f"{'other':>24}  {rest * 1e3:8.2f} ms  {rest / step:6.1%}  embedding, bookkeeping, Python")


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.cpu.parts", description="Time the parts of a step on the CPU.")
    parser.add_argument("sequences", type=int, nargs="?", default=128, help="batch size (default: %(default)s)")
    parser.add_argument("length", type=int, nargs="?", default=220, help="tokens per sequence (default: %(default)s)")
    options = parser.parse_args()
    measure_step(options.sequences, options.length)


if __name__ == "__main__":
    main()
