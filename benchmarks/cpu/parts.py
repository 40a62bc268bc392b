"""Where the time of a step goes on the CPU, and how far each part is from what the machine can do.

    python -m benchmarks.cpu.parts [TEXTS [LENGTH]]          (128 220)

The paper's pair (GOOD and an early checkpoint as BAD), float32. Every part is timed inside real steps; the rates it is
held against are measured between them, and the best of each is the machine's: a large square product, and a plain read
of 256 MiB.
"""

import sys
import time
from collections import defaultdict

import torch

import cdgen.engine.paged_backend
import cdgen.models.llama
from benchmarks.cpu.harness import plain_reader
from benchmarks.generation import OfEngine, paper_model, params

PAPER = (12, 768, 12, 3072)
PARTS = {
    cdgen.models.llama: ("linear", "paged_attention", "rope_and_store", "add_rms_norm"),
    cdgen.engine.paged_backend: ("select_candidates_linear", "gather_logits", "sample_candidates"),
}
ROUNDS = 7


def rates():
    """(FLOP/s of a square product, bytes/s of a read), the best of three."""
    x, block, read = torch.ones(2048, 2048), torch.ones(64 << 20), plain_reader()
    times = []
    for _ in range(3):
        start = time.perf_counter()
        x @ x
        between = time.perf_counter()
        read(block)
        times.append((between - start, time.perf_counter() - between))
    product, reading = map(min, zip(*times, strict=True))
    return 2 * 2048**3 / product, block.nbytes / reading


def timed(function, name, spent):
    def call(*arguments, **options):
        start = time.perf_counter()
        result = function(*arguments, **options)
        spent[name] += time.perf_counter() - start
        return result

    return call


def main(texts=128, length=220):
    pair = tuple(paper_model(*PAPER, seed=seed) for seed in (0, 1))
    variant = OfEngine(*pair, params())
    variant.place(texts, length)
    variant.step()
    spent, steps, machine = defaultdict(float), [], []
    for module, names in PARTS.items():
        for name in names:
            setattr(module, name, timed(getattr(module, name), name, spent))
    for _ in range(ROUNDS):
        start = time.perf_counter()
        variant.step()
        steps.append(time.perf_counter() - start)
        machine.append(rates())
    step = sum(steps) / ROUNDS
    flops, bandwidth = map(max, zip(*machine, strict=True))
    layers = sum(
        weight.numel() for model in pair for weight in model.module.model.layers.parameters() if weight.dim() == 2
    )
    output, width = pair[0].module.lm_head.weight.numel(), PAPER[1]
    cache = 2 * 2 * PAPER[0] * width * 4 * texts * (length + 4)  # keys and values of both, in the middle of the steps
    print(f"{texts} texts of {length} tokens: {step * 1e3:.1f} ms a step")
    print(f"measured meanwhile: {flops / 1e9:.0f} GFLOP/s, {bandwidth / 1e9:.1f} GB/s")
    bounds = {
        "linear": (2 * texts * layers / flops, "of the matrix rate"),
        "select_candidates_linear": (2 * texts * output / flops, "of the matrix rate"),
        "paged_attention": (cache / bandwidth, "of a plain read of the cache"),
        "rope_and_store": (2 * PAPER[0] * texts * width * 4 * 7 / bandwidth, "of reading and writing once"),
        "add_rms_norm": (2 * (2 * PAPER[0] + 1) * texts * width * 4 * 4 / bandwidth, "of reading and writing once"),
    }
    for name, seconds in spent.items():
        bound, of = bounds.get(name, (0, ""))
        share = f"{bound * ROUNDS / seconds:.0%} {of}" if bound else ""
        print(f"{name:>16}  {seconds / ROUNDS * 1e3:8.2f} ms  {seconds / ROUNDS / step:6.1%}  {share}")
    rest = step - sum(spent.values()) / ROUNDS
    print(f"{'the rest':>16}  {rest * 1e3:8.2f} ms  {rest / step:6.1%}  embedding, gate, bookkeeping, Python")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
