"""Sampling ops called in unusual ways: bans, faults, overflowing lists, exact products. Checked, not timed."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.ops import linear as linear_ops
from benchmarks.ops import sampling as sampling_ops
from benchmarks.ops.op import Inputs, Op, Outputs
from cdgen_kernels import codes, reference
from cdgen_kernels.sampling_tensors import SamplingTensors, make_sampling_tensors

LONG = 1e-3  # alpha that leaves some 1000 tokens of zipf_like logits in the head, more than any list holds


def edge(name: str, make: Callable, fused: Callable, plain: Callable, **other: Any) -> Op:
    return Op(name, make, fused, plain, plain, streams=(), bytes=lambda *inputs: 0, compiled=False, **other)


def as_they_are(outputs: Outputs, *inputs: Any) -> Outputs:
    """`torch_floats` of an op that does no arithmetic: nothing may be lost."""
    return outputs


# ------------------------------------------------------------------------------------------- logits: sample and head


def logits(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, **how: Any) -> Inputs:
    """(GOOD's logits [B, V], BAD's, rows, no bans)"""
    return *sampling_ops.sampling_inputs(**how)(batch, vocab_size, dtype, device, seed), None


def banned_logits(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, **how: Any
) -> Inputs:
    """The five best tokens of each row are banned, and some others."""
    good, bad, sampling, _ = logits(batch, vocab_size, dtype, device, seed, **how)
    generator = torch.Generator(device).manual_seed(seed)
    others = torch.randint(-1, vocab_size, (batch, 6), generator=generator, device=device)
    return good, bad, sampling, torch.cat([good.float().topk(5).indices, others], 1)


def faulty_logits(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """In row 0 GOOD has NaN, in row 1 all but banned tokens are impossible, in row 2 BAD has NaN in the head."""
    good, bad, sampling, banned = banned_logits(batch, vocab_size, dtype, device, seed)
    good[0, vocab_size // 3] = torch.nan
    if batch > 2:
        possible = good[1, banned[1, :5]].clone()
        good[1] = -torch.inf
        good[1, banned[1, :5]] = possible
        allowed = good[2].float().index_fill(0, banned[2].clamp(min=0), -torch.inf)
        bad[2, allowed.argmax()] = torch.nan
    return good, bad, sampling, banned


def sample_candidates(
    call: Callable, good: torch.Tensor, bad: torch.Tensor, sampling: SamplingTensors, banned: torch.Tensor | None
) -> Outputs:
    """`call` on the reference's candidates."""
    return call(
        reference.select_candidates(good, sampling.margin, banned, good.shape[1], sampling_ops.CAPACITY), bad, sampling
    )


_CALLED = {
    "contrastive_sample": tuple(map(sampling_ops.sampling, (sampling_ops.triton_sample, reference.contrastive_sample))),
    "select_candidates": (sampling_ops.head_fused, sampling_ops.head_plain),
    "sample_candidates": (
        partial(sample_candidates, sampling_ops.sample_candidates_fused),
        partial(sample_candidates, sampling_ops.sample_candidates_plain),
    ),
}
_GIVEN = {
    "banned tokens": banned_logits,
    "faulty rows": faulty_logits,
    "a head longer than the list": partial(logits, alpha=LONG),
    "banned tokens, top-k 40, top-p 0.9": partial(banned_logits, alpha=0, top_k=40, top_p=0.9),
    "greedy": partial(logits, temperature=0.0),
}
LOGIT_EDGES = [
    edge(f"{name}, {given}", make, *called, torch_floats=as_they_are)
    for name, called in _CALLED.items()
    for given, make in _GIVEN.items()
    if name == "contrastive_sample" or given in ("banned tokens", "faulty rows", "a head longer than the list")
]

# -------------------------------------------------------------------------------------------- hidden states: linear_*


def whole_numbers(
    batch: int,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    width: int = linear_ops.WIDTH,
    margin: float = 2.5,
) -> Inputs:
    """(hidden [B, D], weight [V, D], rows, banned): products of -1, 0 and 1, whose sums are exact in any order."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden, weight = (
        torch.randint(-1, 2, (size, width), generator=generator, device=device).to(dtype)
        for size in (batch, vocab_size)
    )
    banned = torch.randint(-1, vocab_size, (batch, 4), generator=generator, device=device)
    return hidden, weight, make_sampling_tensors(batch, alpha=math.exp(-margin), device=device), banned


def faulty_hidden(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    hidden, *rest = whole_numbers(batch, vocab_size, dtype, device, seed)
    hidden[0, 5] = torch.nan
    return hidden, *rest


def odd_counts(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Row 0 has a fault code in the place of a count; row 1 counts more tokens than its list holds."""
    hidden, weight, token, count = linear_ops.gathered_inputs(batch, vocab_size, dtype, device, seed)
    count[0] = codes.NAN_GOOD
    if batch > 1:
        count[1] = token.shape[1] + 5
        token[1] = torch.arange(token.shape[1], device=device) % vocab_size
    return hidden, weight, token, count


def _select_candidates_linear(name: str, make: Callable) -> Op:
    called = linear_ops.select_candidates_linear_fused, linear_ops.select_candidates_linear_plain
    return edge(f"select_candidates_linear, {name}", make, *called, torch_floats=as_they_are)


LINEAR_EDGES = [
    _select_candidates_linear("whole numbers", whole_numbers),
    _select_candidates_linear("whole numbers, width 4096", partial(whole_numbers, width=4096)),
    _select_candidates_linear("whole numbers, width 200", partial(whole_numbers, width=200)),
    _select_candidates_linear("a head longer than the list", partial(whole_numbers, margin=40.0)),
    _select_candidates_linear("NaN in a row", faulty_hidden),
    edge(
        "gather_logits, odd counts",
        odd_counts,
        linear_ops.gathered_fused,
        linear_ops.gathered_plain,
        torch_floats=lambda outputs, *inputs: {"score": gathered_torch(*inputs)},
    ),
]


def gathered_torch(
    hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    listed = torch.arange(token.shape[1], device=token.device) < count.unsqueeze(1)
    return torch.where(listed, linear_ops.gathered_eager(hidden, weight, token, count), -torch.inf)
