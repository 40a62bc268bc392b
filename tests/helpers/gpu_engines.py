"""Models, backends and engines for the tests in tests/gpu: on a GPU, or, as a dry run, on the CPU.

CDGEN_TEST_DEVICE=cuda python -m pytest tests/gpu     on the GPU
CDGEN_TEST_DEVICE=cpu python -m pytest tests/gpu      dry run: the same tests on the CPU, with imitated graphs
"""

import copy
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.outputs import CompletionOutput
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, Request, make_requests
from tests.helpers.engines import outputs_of
from tests.helpers.tiny_models import TEST_DEVICE, make_llama

# Exact float32 products, so that tokens can be compared with the CPU's. Libraries read the variable when they start.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

VOCABULARY = 1003  # odd, so that no tile divides it
PROMPTS = [[5, 6, 7], [9] * 16, [11, 12], list(range(20, 57)), [8], [5, 6, 7], [13] * 13, list(range(900, 960))]
N = 4  # continuations per prompt
NEW = 48 if TEST_DEVICE == "cuda" else 24  # tokens per continuation
SHAPE = {"vocab_size": VOCABULARY, "tie_word_embeddings": False}


class Drawn(NamedTuple):
    """The fields by which two engines are compared."""

    token_ids: list[int]
    finish_reason: str


def on(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy on a device. Buffers such as rotary frequencies stay float32, as in a checkpoint that is loaded."""
    module = copy.deepcopy(module).to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def requests(prompts: Sequence[list[int]] = PROMPTS) -> Iterator[Request]:
    """Iterate over requests for N continuations of each prompt."""
    return make_requests(Prompts(prompts), [(prompt, index) for prompt in range(len(prompts)) for index in range(N)])


class Setup:
    """Makes models, backends and engines on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pair(self, kind: str = "checkpoint", dtype: torch.dtype = torch.float32, cpu: bool = False) -> ContrastiveLM:
        """Return a pair: GOOD with 4 layers of width 256; another model, dropout, or 2 layers as BAD."""
        device = torch.device("cpu") if cpu else self.device
        good = on(make_llama(0, layers=4, width=256, **SHAPE), device, dtype)
        if kind == "dropout":
            return ContrastiveLM(good, dropout=0.3)
        if kind == "layers":
            return ContrastiveLM(good, layers=2)
        return ContrastiveLM(good, on(make_llama(1, layers=2, width=128, **SHAPE), device, dtype))

    def backend(
        self,
        lm: ContrastiveLM,
        params: SamplingParams,
        size: int = 32,
        graphs: bool = True,
        steps: int = 4,
        prompts: Sequence[list[int]] = PROMPTS,
    ) -> PagedBackend:
        """Return a backend with two rounds of `steps` steps in flight, with graphs or without."""
        backend = PagedBackend(lm.pair, params, size, max(map(len, prompts)) + params.max_tokens)
        if not graphs and backend._graphs is not None:
            for each in backend._graphs:
                each.close()
            backend._graphs = None
        elif graphs and backend._graphs is None:  # on the CPU
            backend._graphs = backend._new_graphs()
        backend.steps_per_round, backend.rounds_in_flight = steps, 2
        return backend

    def run(self, lm: ContrastiveLM, params: SamplingParams, **options: int) -> list[CompletionOutput]:
        """Decode all requests."""
        return outputs_of(lm.pair, self.backend(lm, params, **options), requests(), params)

    def on_cpu(self, kind: str, params: SamplingParams) -> list[CompletionOutput]:
        """Decode all requests on the CPU without graphs."""
        lm = self.pair(kind, cpu=True)
        backend = PagedBackend(lm.pair, params, 32, max(map(len, PROMPTS)) + params.max_tokens)
        return outputs_of(lm.pair, backend, requests(), params)


def drawn(outputs: Sequence[CompletionOutput]) -> list[Drawn]:
    """Return the compared fields of every output."""
    return [Drawn(output.token_ids, output.finish_reason) for output in outputs]


def params(**changes: object) -> SamplingParams:
    """Return parameters for greedy contrastive decoding, unless changed."""
    return SamplingParams(**{"n": N, "max_tokens": NEW, "temperature": 0, "ignore_eos": True} | changes)


@pytest.fixture
def setup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Make models, backends and engines on the device of CDGEN_TEST_DEVICE; skip the test if it is not set."""
    if TEST_DEVICE == "cuda":
        if not torch.cuda.is_available():
            pytest.fail("CDGEN_TEST_DEVICE=cuda, but torch finds no CUDA device")
        return Setup(torch.device("cuda", 0))
    if TEST_DEVICE is None:
        pytest.skip("for a GPU: set CDGEN_TEST_DEVICE=cuda, or =cpu for a dry run")
    if TEST_DEVICE != "cpu":
        pytest.fail(f"CDGEN_TEST_DEVICE={TEST_DEVICE}: use cuda or cpu")
    request.getfixturevalue("fake_cuda")
    return Setup(torch.device("cpu"))
