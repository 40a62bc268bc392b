"""The specifications of all ops."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cdgen_kernels import cross_entropy
from cdgen_kernels.registry import Autograd, OpSpec
from cdgen_kernels.sampling_tensors import Candidates, SamplingTensors

CandidateTensors = tuple[Tensor, Tensor, Tensor, Tensor]
SAMPLING = (
    "Tensor margin, Tensor good_weight, Tensor contrast_strength, Tensor temperature, Tensor top_p, "
    "Tensor top_k, Tensor seed, Tensor sequence, Tensor position"
)
FIELDS = len(SamplingTensors._fields)
CANDIDATES = "Tensor token, Tensor logit, Tensor count, Tensor max"


# ------------------------------------------------------------------------------------------------------------- fakes


def _fake_select_candidates(
    good: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> CandidateTensors:
    batch = good.shape[0]
    return (
        good.new_empty((batch, capacity), dtype=torch.int32),
        good.new_empty((batch, capacity), dtype=torch.float32),
        good.new_empty(batch, dtype=torch.int32),
        good.new_empty(batch, dtype=torch.float32),
    )


def _fake_contrastive_sample(good: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, logprobs = good.shape[0], rest[-1]
    return good.new_empty(batch, dtype=torch.int64), good.new_empty((3, batch if logprobs else 0), dtype=torch.float32)


def _fake_sample_candidates(token: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    batch, logprobs = token.shape[0], rest[-1]
    return token.new_empty(batch, dtype=torch.int64), token.new_empty(batch if logprobs else 0, dtype=torch.float32)


def _fake_select_candidates_linear(
    hidden: Tensor, weight: Tensor, margin: Tensor, banned: Tensor | None, vocab_size: int, capacity: int
) -> CandidateTensors:
    return _fake_select_candidates(hidden, margin, banned, vocab_size, capacity)


def _fake_gather_logits(hidden: Tensor, weight: Tensor, token: Tensor, count: Tensor) -> Tensor:
    return hidden.new_empty(token.shape, dtype=torch.float32)


def _fake_add_rms_norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if residual is None else torch.empty_like(x)


def _fake_silu_mul(gate_up: Tensor) -> Tensor:
    return gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2))


def _fake_linear_rows(x: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    return x.new_empty((x.shape[0], sum(weight.shape[0] for weight in weights)))


def _fake_queries(q: Tensor, *rest: Any) -> Tensor:
    return q.new_empty(q.shape)


# ----------------------------------------------- calling conventions: from an op's tensors to its function, and back


def _call_select_candidates(function: Callable[..., Candidates], *arguments: Any) -> CandidateTensors:
    token, logit, count, max_logit = function(*arguments)
    return token, logit, count, max_logit


def _call_contrastive_sample(
    function: Callable[..., Any], good: Tensor, bad: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor]:
    token, *logprobs = function(good, bad, SamplingTensors(*rest[:FIELDS]), *rest[FIELDS:])
    return token, torch.stack(logprobs) if rest[-1] else good.new_empty((3, 0), dtype=torch.float32)


def _call_sample_candidates(
    function: Callable[..., Any],
    token: Tensor,
    logit: Tensor,
    count: Tensor,
    max_logit: Tensor,
    bad: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, Tensor]:
    candidates, sampling = Candidates(token, logit, count, max_logit), SamplingTensors(*rest[:FIELDS])
    drawn = function(candidates, bad, sampling, *rest[FIELDS:])
    return drawn.token, drawn.logprob if rest[-1] else logit.new_empty(0)


def _call_add_rms_norm(
    function: Callable[..., tuple[Tensor, Tensor]], x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    normed, total = function(x, residual, weight, eps)
    return normed, x.new_empty(0) if residual is None else total  # an op must not return one of its inputs


# ---------------------------------------------------------------------------------------------------- specifications

SPECS = (
    OpSpec(
        "select_candidates",
        f"(Tensor good, Tensor margin, Tensor? banned, int vocab_size, int capacity) -> ({CANDIDATES})",
        fake=_fake_select_candidates,
        triton="triton.candidates",
        convention=_call_select_candidates,
    ),
    OpSpec(
        "contrastive_sample",
        f"(Tensor good, Tensor? bad, {SAMPLING}, Tensor? banned, int vocab_size, int outside, float value, "
        "bool logprobs) -> (Tensor token, Tensor logprobs)",
        fake=_fake_contrastive_sample,
        triton="triton.sample",
        convention=_call_contrastive_sample,
    ),
    OpSpec(
        "sample_candidates",
        f"({CANDIDATES}, Tensor? bad, {SAMPLING}, int vocab_size, bool gathered, bool logprobs)"
        " -> (Tensor token, Tensor logprob)",
        fake=_fake_sample_candidates,
        triton="triton.candidates",
        convention=_call_sample_candidates,
    ),
    OpSpec(
        "select_candidates_linear",
        "(Tensor hidden, Tensor weight, Tensor margin, Tensor? banned, int vocab_size, int capacity)"
        f" -> ({CANDIDATES})",
        fake=_fake_select_candidates_linear,
        triton="triton.linear",
        cpp="cpp",
        convention=_call_select_candidates,
    ),
    OpSpec(
        "gather_logits",
        "(Tensor hidden, Tensor weight, Tensor token, Tensor count) -> Tensor",
        fake=_fake_gather_logits,
        triton="triton.linear",
    ),
    OpSpec(
        "add_rms_norm",
        "(Tensor x, Tensor? residual, Tensor weight, float eps) -> (Tensor normed, Tensor total)",
        fake=_fake_add_rms_norm,
        triton="triton.layers",
        convention=_call_add_rms_norm,
    ),
    OpSpec(
        "silu_mul",
        "(Tensor gate_up) -> Tensor",
        fake=_fake_silu_mul,
        triton="triton.layers",
    ),
    OpSpec(
        "linear_rows",
        "(Tensor x, Tensor[] weights, Tensor[] biases) -> Tensor",
        fake=_fake_linear_rows,
        triton="reference",  # torch's product
    ),
    OpSpec(
        "rope_and_store",
        "(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor page_table, Tensor cache_row, Tensor position, "
        "Tensor(a!) keys, Tensor(b!) values) -> Tensor",
        fake=_fake_queries,
        triton="triton.layers",
    ),
    OpSpec(
        "rope_and_store_fp8",
        "(Tensor q, Tensor k, Tensor v, Tensor cos, Tensor sin, Tensor page_table, Tensor cache_row, Tensor position, "
        "Tensor(a!) keys, Tensor(b!) values, Tensor(c!) key_scales, Tensor(d!) value_scales) -> Tensor",
        fake=_fake_queries,
        reference="reference:rope_and_store",
        triton="triton.layers:rope_and_store",
        cpp="reference:rope_and_store",
    ),
    OpSpec(
        "paged_attention",
        "(Tensor q, Tensor keys, Tensor values, Tensor page_table, Tensor cache_row, Tensor position, float scale, "
        "int window, float dropout, Tensor seed, Tensor sequence, int layer, bool prefill, Tensor? shared_lengths)"
        " -> Tensor",
        fake=_fake_queries,
        triton="triton.attention",
    ),
    OpSpec(
        "paged_attention_fp8",
        "(Tensor q, Tensor keys, Tensor values, Tensor page_table, Tensor cache_row, Tensor position, float scale, "
        "int window, float dropout, Tensor seed, Tensor sequence, int layer, bool prefill, Tensor? shared_lengths, "
        "Tensor key_scales, Tensor value_scales) -> Tensor",
        fake=_fake_queries,
        reference="reference:paged_attention",
        triton="triton.attention:paged_attention",
        cpp="cpp",
    ),
    OpSpec(
        "softmax_gradient",
        "(Tensor(a!) logits, Tensor target, int ignore_index, bool gradient) -> Tensor",
        fake=cross_entropy.fake_softmax_gradient,
        reference="cross_entropy",
        triton="triton.cross_entropy",
    ),
    OpSpec(
        "linear_cross_entropy",
        "(Tensor hidden, Tensor weight, Tensor target, int ignore_index, int chunk_rows, bool need_hidden, "
        "bool need_weight) -> (Tensor loss, Tensor grad_hidden, Tensor grad_weight)",
        fake=cross_entropy.fake_linear_cross_entropy,
        reference="cross_entropy:_in_full_precision",
        triton="cross_entropy:_with_triton",
        cpp="cross_entropy:_in_full_precision",
        autograd=Autograd(cross_entropy.backward, cross_entropy.setup_context),
    ),
)
