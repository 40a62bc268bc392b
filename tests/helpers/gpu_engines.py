"""Models, backends and engines for the tests in tests/gpu: on a GPU, or, as a dry run, on the CPU.

CDGEN_TEST_DEVICE=cuda python -m pytest tests/gpu     on the GPU
CDGEN_TEST_DEVICE=cpu python -m pytest tests/gpu      dry: the same tests on the CPU, with imitated graphs
"""

import copy
import os
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import nn

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.engine import Continuation, Engine, Request
from cdgen.engine.graphs import StepGraphs
from cdgen.engine.paged_backend import PagedBackend
from tests.helpers.tiny_models import TEST_DEVICE, make_llama

# Exact float32 products, so that texts can be compared with the CPU's. Libraries read it when they start.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"

VOCABULARY = 1003  # odd, so that no tile divides it
PROMPTS = [[5, 6, 7], [9] * 16, [11, 12], list(range(20, 57)), [8], [5, 6, 7], [13] * 13, list(range(900, 960))]
N = 4  # texts of each prompt
NEW = 48  # tokens of a text
SHAPE = {"vocab_size": VOCABULARY, "tie_word_embeddings": False}


class Drawn(NamedTuple):
    """What two engines are compared by."""

    token_ids: list[int]
    finish_reason: str


def on(module: nn.Module, device: torch.device, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A copy on a device. As in a checkpoint that is loaded, buffers such as rotary frequencies stay float32."""
    module = copy.deepcopy(module).to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def requests() -> list[Request]:
    """N texts of each prompt."""
    return [
        Request(prompt, deque((at * N + c, (at << 32) + c) for c in range(N)), at << 32)
        for at, prompt in enumerate(PROMPTS)
    ]


class Setup:
    """Everything on one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def pair(self, kind: str = "checkpoint", dtype: torch.dtype = torch.float32, cpu: bool = False) -> ContrastiveLM:
        """GOOD has 4 layers of 256; BAD is another model, or GOOD with dropout, or GOOD's first two layers."""
        device = torch.device("cpu") if cpu else self.device
        good = on(make_llama(0, layers=4, width=256, **SHAPE), device, dtype)
        if kind == "dropout":
            return ContrastiveLM(good, dropout=0.3)
        if kind == "layers":
            return ContrastiveLM(good, layers=2)
        return ContrastiveLM(good, on(make_llama(1, layers=2, width=128, **SHAPE), device, dtype))

    def backend(self, lm: ContrastiveLM, params: SamplingParams, size: int = 32, sync_every: int = 4) -> PagedBackend:
        """A backend that replays graphs and waits for tokens every `sync_every` steps; 0: launches every kernel."""
        texts = PagedBackend(lm.pair, params, size, max(map(len, PROMPTS)) + params.max_tokens)
        if sync_every and texts._graphs is None:  # on the CPU
            texts._graphs = StepGraphs(size, self.device)
        texts.sync_every = sync_every or 1
        return texts

    def run(self, lm: ContrastiveLM, params: SamplingParams, **options: int) -> list[Continuation]:
        """All texts of the requests."""
        return Engine(lm.pair, self.backend(lm, params, **options), requests(), params).run()

    def on_cpu(self, kind: str, params: SamplingParams) -> list[Continuation]:
        """All texts, from an engine on the CPU without graphs."""
        lm = self.pair(kind, cpu=True)
        texts = PagedBackend(lm.pair, params, 32, max(map(len, PROMPTS)) + params.max_tokens)
        return Engine(lm.pair, texts, requests(), params).run()


def drawn(texts: Sequence[Continuation]) -> list[Drawn]:
    """Tokens and ends."""
    return [Drawn(text.token_ids, text.finish_reason) for text in texts]


def params(**changes: object) -> SamplingParams:
    """Greedy contrastive decoding, unless changed."""
    return SamplingParams(**{"n": N, "max_tokens": NEW, "temperature": 0, "ignore_eos": True} | changes)


@pytest.fixture
def setup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """Makes models, backends and engines on the device that was asked for; skips where none was."""
    if TEST_DEVICE == "cuda":
        if not torch.cuda.is_available():
            pytest.fail("CDGEN_TEST_DEVICE=cuda, but torch finds no CUDA device")
        return Setup(torch.device("cuda", 0))
    if TEST_DEVICE is None:
        pytest.skip("for a GPU: set CDGEN_TEST_DEVICE=cuda, or =cpu for a dry run")
    if TEST_DEVICE != "cpu":
        pytest.fail(f"CDGEN_TEST_DEVICE={TEST_DEVICE}: use cuda or cpu")
    request.getfixturevalue("fake_cuda")
    monkeypatch.setattr("cdgen_kernels.ops._raise_on_fault", lambda codes: None)  # a GPU reports faults by tokens
    return Setup(torch.device("cpu"))
