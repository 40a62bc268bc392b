"""Compile the kernels of a run on a machine without a GPU.

    python -m benchmarks.gpu.precompile [CAPABILITY]

A machine with a GPU can then take them from Triton's cache instead of spending its first minutes in compilers; see
docs/gpu.md. The launchers are called as in a run, but with tensors on the CPU and without starting the kernels. Their
results are arbitrary and are not read.
"""

import argparse
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

import torch
import triton
from transformers import PreTrainedModel
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from benchmarks.generation import random_llama
from benchmarks.gpu import check_jobs, graph, kernels, noise, repeats
from benchmarks.gpu.generate import SETTINGS
from benchmarks.gpu.models import Shape
from benchmarks.ops.linear import output_layer
from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.paged_backend import PagedBackend
from cdgen_kernels import registry

CPU = torch.device("cpu")
TOKENS = (1, 8, 32, 64, 512)  # batch sizes: every tile height, with and without programs that share keys
DROPOUT, VOCAB_SIZE = 0.3, 32_000
SMALL = (Shape(1, 256, 4, 512, 1003, 2), Shape(1, 128, 4, 256, 1003, 2))  # the models of tests/gpu
DTYPES = (torch.bfloat16, torch.float32, torch.float16)


class Driver:
    """Stand in for Triton's driver of a GPU."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling_only(capability: int) -> Iterator[set[str]]:
    """Make launches compile and return. Yield the hashes of the compiled kernels, a set that grows."""
    compiled: set[str] = set()
    run = triton.JITFunction.run

    def compile_only(self: triton.JITFunction, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.add(run(self, *args, grid=grid, warmup=True, **options).hash)

    driver.set_active(Driver(capability))
    with (
        mock.patch.object(triton.JITFunction, "run", compile_only),
        mock.patch("cdgen_kernels.triton.settings.compute_capability", lambda device: capability // 10),
        mock.patch("cdgen_kernels.ops._raise_on_fault", lambda *_: None),  # results are arbitrary
    ):
        yield compiled


def use_triton_on_cpu_tensors() -> torch.library.Library:
    """Make ops of CPU tensors call the Triton launchers, until the returned object is deleted."""
    library = torch.library.Library("cdgen", "IMPL", "CPU")
    with mock.patch.dict(registry._DECISIONS, {"cpu": ("triton", "")}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that registered implementations are replaced
        for name in registry.OPS:
            library.impl(name, registry.kernel(name, "cpu"), allow_override=True)
    return library


def compile_ops() -> None:
    """Compile the kernels that the parts `check`, `kernels` and `sweep` launch with the default settings."""
    found = [case for groups in check_jobs.GROUPS.values() for group in groups for case in group.cases(False).values()]
    found += [case for table in (kernels.SAMPLING, kernels.LAYERS) for case in kernels.cases(table, False).values()]
    for case in dict.fromkeys(found):
        if case.op.name != "linear_cross_entropy":  # for CPU tensors it does not launch Triton kernels
            case.op.fused(*case.make(CPU))
    seed, sequence, position = torch.zeros(3, 1, dtype=torch.long)
    noise.triton_noise((seed, sequence, position), 2000)
    for batch, width in repeats.SHAPES:
        repeats.triton_maxima(*output_layer(batch, 300, torch.bfloat16, CPU, 0, width))
    graph.decode_step(128, 32_000, 220, CPU)[0]()


def compile_engine(good: Shape, bad: Shape | None, dtype: torch.dtype) -> None:
    """Compile the kernels of prefills and steps of a pair of models.

    Models of one layer are enough, since all layers use the same kernels. Vocabularies above VOCAB_SIZE use the same
    kernels as VOCAB_SIZE.
    """

    def make(shape: Shape, seed: int) -> PreTrainedModel:
        small = shape._replace(layers=1, vocab_size=min(shape.vocab_size, VOCAB_SIZE))
        return random_llama(**small._asdict(), seed=seed, dtype=dtype)

    lm = ContrastiveLM(make(good, 0), **({"bad": make(bad, 1)} if bad else {"dropout": DROPOUT}))
    banning = {"min_tokens": 1, "stop_token_ids": (1, 2, 3)}
    for params in (
        SamplingParams(max_tokens=30, **given)
        for given in ({}, banning, banning | {"logprobs": True}, {"contrast_strength": 0.0})
    ):
        for tokens, shared in product(TOKENS, (False, True)):
            backend = PagedBackend(lm.pair, params, tokens, 64)
            backend._runner.stores_logits = False  # as on a GPU
            backend._prompts.compute(torch.zeros(4, tokens, dtype=torch.long))
            backend._step(torch.arange(tokens).unsqueeze(0), shared)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu.precompile", description="Compile the kernels of a run on a machine without a GPU."
    )
    parser.add_argument(
        "capability", type=int, nargs="?", default=90, help="compute capability of the GPU (default: 90, Hopper)"
    )
    capability = parser.parse_args().capability
    start = time.monotonic()
    with compiling_only(capability) as compiled:
        compile_ops()
        print(f"ops: {len(compiled)} kernels after {time.monotonic() - start:.0f} s", flush=True)
        library = use_triton_on_cpu_tensors()
        with torch.inference_mode():
            for dtype in DTYPES:
                for bad in (SMALL[1], None):
                    compile_engine(SMALL[0], bad, dtype)
            for good, bad in dict.fromkeys((setting.good, setting.bad) for setting in SETTINGS.values()):
                compile_engine(good, bad, torch.bfloat16)
        del library
    print(f"all: {len(compiled)} kernels after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
