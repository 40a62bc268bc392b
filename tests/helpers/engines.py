"""Prompts, backends and requests for tests of the engine, and matrix products that do not depend on the batch."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest
import torch

from cdgen import CompletionOutput, ContrastiveLM, SamplingParams
from cdgen.engine.backend import Backend
from cdgen.engine.engine import Engine
from cdgen.engine.model_pair import ModelPair
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, Request, make_requests
from cdgen.models.products import Product
from cdgen_kernels import implementation, paged_attention

original = Product.__call__
PROMPTS = [[5, 6, 7], [9] * 16, [11, 12], list(range(20, 57)), [8], [5, 6, 7], [13] * 13]


def by_row(product: Product, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([original(product, row) for row in x.split(1)])


def attention_by_row(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    page_table: torch.Tensor,
    cache_row: torch.Tensor,
    position: torch.Tensor,
    *,
    sequence: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    rows = [slice(at, at + 1) for at in range(len(q))]
    each = [{"sequence": None if sequence is None else sequence[at]} | options for at in rows]
    return torch.cat(
        [
            paged_attention(q[at], keys, values, page_table, cache_row[at], position[at], **more)
            for at, more in zip(rows, each, strict=True)
        ]
    )


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute products row by row, so that outputs are equal bit for bit in batches of any size."""
    monkeypatch.setattr(Product, "__call__", by_row)
    if implementation("cpu")[0] == "reference":  # its sums are as long as the longest sequence of the batch
        monkeypatch.setattr("cdgen.models.llama.paged_attention", attention_by_row)


def free(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"n": 3, "max_tokens": 9, "ignore_eos": True, "logprobs": True} | changes)


def backend(
    lm: ContrastiveLM, params: SamplingParams, size: int = 4, longest: int = 46, **options: Any
) -> PagedBackend:
    return PagedBackend(lm.pair, params, size, longest, **options)


def requests(n: int = 3) -> Iterator[Request]:
    """Iterate over requests for n continuations of each of PROMPTS."""
    return make_requests(Prompts(PROMPTS), [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(n)])


def outputs_of(
    pair: ModelPair,
    backend: Backend,
    requests: Iterable[Request],
    params: SamplingParams,
    on_tokens: Callable[[int], None] | None = None,
) -> list[CompletionOutput]:
    """Decode the requests; return the outputs by place."""
    outputs: dict[int, CompletionOutput] = {}
    Engine(pair, backend, requests, params, outputs.__setitem__, on_tokens).run()
    return [outputs[place] for place in range(len(outputs))]


def continued(
    lm: ContrastiveLM, prompts: Prompts, sequences: Sequence[tuple[int, int]], params: SamplingParams
) -> list[CompletionOutput]:
    """Return the outputs of :meth:`ContrastiveLM.continue_sequences`, in the order of `sequences`."""
    outputs: dict[int, CompletionOutput] = {}
    lm.continue_sequences(prompts, sequences, params, on_finished=outputs.__setitem__)
    return [outputs[place] for place in range(len(sequences))]
