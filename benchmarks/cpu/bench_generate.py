"""One step of contrastive decoding on the CPU, both models and the draw, compared with three other ways to decode.

    python -m pytest benchmarks/cpu/bench_generate.py --benchmark-only --benchmark-json=generate.json

128 sequences at several lengths, float32. Each rival is timed in turns with the engine, in one process:

* the paper's loop: transformers' models and DynamicCache, the literal chain, multinomial;
* transformers' `generate` with BAD as a LogitsProcessor;
* cdgen's own engine with the static backend.

All four must write the same greedy tokens before any time is reported. "products alone" are the matrix products of the
engine's step and nothing else.

The time of a run of 400 tokens from prompts of 20 is the sum of its steps, whose time grows steadily with the length.
The last case of each rival therefore reports the ratio of two integrals over the measured lengths (trapezoidal rule),
without prefill. The cases with 420 tokens take 18 GB of memory.
"""

import functools
from collections.abc import Callable

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.cpu.harness import RESULTS, compare
from benchmarks.generation import (
    EngineLoop,
    GenerateLoop,
    LoopFactory,
    PaperLoop,
    StaticEngineLoop,
    random_model,
    sampling_params,
)
from cdgen.models.language_model import LanguageModel
from cdgen.models.llama import LlamaRunner
from cdgen.models.products import Product

PAPER = (12, 768, 12, 3072)
PAIRS = {
    "paper, early": (PAPER, PAPER),
    "paper, 20x": (PAPER, (6, 256, 4, 1024)),
}
RIVALS: dict[str, LoopFactory] = {
    "paper's loop": PaperLoop,
    "generate": GenerateLoop,
    "static backend": StaticEngineLoop,
}
SEQUENCES, LENGTHS = 128, (20, 220, 420)
# (pair, rival) -> {length: (ms of the engine's step, ms of the rival's)}
_STEPS: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}


@functools.cache
def pair(name: str) -> tuple[LanguageModel, LanguageModel]:
    """Return GOOD and BAD of a pair: one of PAIRS, or "SmolLM2"."""
    if name == "SmolLM2":
        from benchmarks.smollm2 import BADS
        from cdgen.models.loading import load
        from cdgen.models.smollm2 import smollm2_folder

        model, _ = load(smollm2_folder(print))
        return model, BADS["layers"](model)
    good, bad = PAIRS[name]
    return random_model(*good, seed=0), random_model(*bad, seed=1)


@functools.cache
def check(name: str) -> None:
    """Assert that all four write the same greedy tokens."""
    prompts = torch.randint(1000, (4, 20), generator=torch.Generator().manual_seed(0)).tolist()
    tokens = {}
    for variant, make in {"engine": EngineLoop, **RIVALS}.items():
        loop = make(*pair(name), sampling_params(temperature=0.0))
        tokens[variant] = [loop.start(prompts), *(loop.step() for _ in range(6))]
        loop.close()
    assert all(found == tokens["engine"] for found in tokens.values()), tokens


def products(good: LanguageModel, bad: LanguageModel) -> Callable[[], None]:
    """Return a function that computes the matrix products of a step. Like the engine, it skips BAD's output layer."""
    found: list[Product] = []
    for model in (good, bad):
        for layer in LlamaRunner(model.module, 1).layers:
            found += [layer.qkv, layer.out, layer.gate_up, layer.down]
    found.append(Product(good.module.lm_head))
    inputs = [torch.randn(SEQUENCES, product.layers[0].in_features) for product in found]

    @torch.inference_mode()
    def call() -> None:
        for x, product in zip(inputs, found, strict=True):
            product(x)

    return call


def ratio_of_runs(steps: dict[int, tuple[float, float]]) -> float:
    """Return the rival's time of a run divided by the engine's, from their steps at each length."""
    lengths = torch.tensor(list(steps))
    own, rival = (torch.trapezoid(torch.tensor(times), lengths) for times in zip(*steps.values(), strict=True))
    return round(float(rival / own), 2)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rival", RIVALS)
@pytest.mark.parametrize("name", [*PAIRS, "SmolLM2"])
def test_step(benchmark: BenchmarkFixture, name: str, rival: str, length: int) -> None:
    check(name)
    torch.manual_seed(0)
    good, bad = pair(name)
    engine, other = (make(good, bad, sampling_params()) for make in (EngineLoop, RIVALS[rival]))
    for loop in (engine, other):
        loop.start_at(SEQUENCES, length)
    benchmark.group = f"one step of {name}, {SEQUENCES} sequences of {length} tokens"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    compare(benchmark, ("cdgen", engine.step), {rival: other.step, "products alone": products(good, bad)}, rounds=5)
    figures = RESULTS[-1][1]
    figures["share outside products"] = round(1 - figures["products alone / cdgen"], 3)
    steps = _STEPS.setdefault((name, rival), {})
    steps[length] = figures["cdgen, ms"], figures[f"{rival}, ms"]
    if len(steps) == len(LENGTHS):
        figures["a run of 400 tokens, ratio"] = ratio_of_runs(steps)
    for loop in (engine, other):
        loop.close()
