"""A whole step of contrastive decoding on the CPU, both models and the draw, against three ways of others.

    python -m pytest benchmarks/cpu/bench_generate.py --benchmark-only --benchmark-json=generate.json

128 texts (16 prompts x 8) at several lengths, float32. Each rival is timed beside the engine in one process, turn by
turn: the paper's loop (transformers' models and DynamicCache, the literal chain, multinomial), transformers' `generate`
with BAD as a LogitsProcessor, and cdgen's own engine on static batches. Before any time is reported all four must write
the same greedy texts. Products alone are those of the engine's step, and nothing else.

A run of 400 tokens from prompts of 20 is the sum of its steps, which grows evenly with the length: the last case of
each rival has the ratio of the two trapezoids over the lengths measured, prefill apart. 420 tokens take 18 GB.
"""

import functools

import pytest
import torch

from benchmarks.cpu.harness import RESULTS, compare
from benchmarks.generation import Generate, OfEngine, PaperLoop, Static, paper_model, params
from cdgen.models.llama import LlamaRunner

PAPER = (12, 768, 12, 3072)
PAIRS = {
    "paper, early": (PAPER, PAPER),
    "paper, 20x": (PAPER, (6, 256, 4, 1024)),
}
RIVALS = {"paper's loop": PaperLoop, "generate": Generate, "static batches": Static}
ROWS, LENGTHS = 128, (20, 220, 420)
_RUNS = {}  # (pair, rival): {length: (seconds of the engine, of the rival)}


@functools.cache
def pair(name):
    if name == "SmolLM2":
        from benchmarks.smollm2 import BADS
        from cdgen.models.loading import load
        from cdgen.models.smollm2 import smollm2_folder

        good, _ = load(smollm2_folder(print))
        return good, BADS["layers"](good)
    return tuple(paper_model(*shape, seed=seed) for seed, shape in enumerate(PAIRS[name]))


@functools.cache
def check(name):
    """All four write the same texts, token by token the best of the head."""
    prompts = torch.randint(1000, (4, 20), generator=torch.Generator().manual_seed(0)).tolist()
    texts = {}
    for kind in (OfEngine, *RIVALS.values()):
        variant = kind(*pair(name), params(temperature=0.0))
        texts[kind] = [variant.compute(prompts), *(variant.step() for _ in range(6))]
        variant.close()
    assert all(text == texts[OfEngine] for text in texts.values()), texts


def products(good, bad):
    """A function that makes the matrix products of a step, BAD's output layer left out as there."""
    todo = []
    for model in (good, bad):
        for layer in LlamaRunner(model.module, 1).layers:
            todo += [layer.qkv, layer.out, layer.gate_up, layer.down]
    todo.append((good.module.lm_head.weight, None))
    inputs = [torch.randn(ROWS, weight.shape[1]) for weight, _ in todo]

    @torch.inference_mode()
    def call():
        for x, (weight, bias) in zip(inputs, todo, strict=True):
            torch.nn.functional.linear(x, weight, bias)

    return call


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", [*PAIRS, "SmolLM2"])
def test_step(benchmark, name, rival, length):
    check(name)
    good, bad = pair(name)
    variants = [kind(good, bad, params()) for kind in (OfEngine, RIVALS[rival])]
    for variant in variants:
        variant.place(ROWS, length)
    benchmark.group = f"a step of {name}, {ROWS} texts of {length} tokens"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    ours, theirs = (variant.step for variant in variants)
    compare(benchmark, ("cdgen", ours), {rival: theirs, "products alone": products(good, bad)}, rounds=5)
    figures = RESULTS[-1][1]
    figures["share outside products"] = round(1 - figures["products alone / cdgen"], 3)
    measured = _RUNS.setdefault((name, rival), {})
    measured[length] = figures["cdgen, ms"], figures[f"{rival}, ms"]
    if len(measured) == len(LENGTHS):
        ours, theirs = (
            torch.trapezoid(torch.tensor(y), torch.tensor(LENGTHS)) for y in zip(*measured.values(), strict=True)
        )
        figures["a run of 400 tokens, ratio"] = round(float(theirs / ours), 2)
    for variant in variants:
        variant.close()
