"""Prompts, backends and requests for tests of the engine, and matrix products that do not depend on the batch."""

from typing import Any

import pytest
import torch

from cdgen import ContrastiveLM, SamplingParams
from cdgen.engine.paged_backend import PagedBackend
from cdgen.engine.requests import Prompts, Request, make_requests
from cdgen_kernels import implementation, paged_attention

PROMPTS = [[5, 6, 7], [9] * 16, [11, 12], list(range(20, 57)), [8], [5, 6, 7], [13] * 13]


def by_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.stack([torch.nn.functional.linear(row, weight, bias) for row in x])


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
    monkeypatch.setattr("cdgen.models.llama.linear", by_row)
    monkeypatch.setattr("cdgen.engine.paged_backend.linear", by_row)
    if implementation("cpu")[0] == "reference":  # its sums are as long as the longest sequence of the batch
        monkeypatch.setattr("cdgen.models.llama.paged_attention", attention_by_row)


def free(**changes: Any) -> SamplingParams:
    return SamplingParams(**{"n": 3, "max_tokens": 9, "ignore_eos": True, "logprobs": True} | changes)


def backend(
    lm: ContrastiveLM, params: SamplingParams, size: int = 4, longest: int = 46, **options: Any
) -> PagedBackend:
    return PagedBackend(lm.pair, params, size, longest, **options)


def requests(n: int = 3) -> list[Request]:
    """Return requests for n continuations of each of PROMPTS."""
    return make_requests(Prompts(PROMPTS), [(prompt, index) for prompt in range(len(PROMPTS)) for index in range(n)])
