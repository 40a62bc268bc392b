"""Edge cases of the sampling ops: bans, faults, overflowing lists, exact products. They are checked, not timed."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.ops import linear as linear_ops
from benchmarks.ops import sampling as sampling_ops
from benchmarks.ops.op import Inputs, Op, Outputs, exact_floats
from cdgen_kernels import SamplingTensors, codes, make_sampling_tensors, reference

LONG = 1e-3  # alpha that leaves about 1000 candidates of zipf_like logits, more than any list holds


def edge_op(
    name: str,
    make: Callable[..., Inputs],
    fused: Callable[..., Outputs],
    reference: Callable[..., Outputs],
    **fields: Any,
) -> Op:
    """Return an entry that is only checked; `fields` are further fields of :class:`Op`."""
    return Op(name, make, fused, reference, reference, streams=(), bytes=lambda *inputs: 0, compiled=False, **fields)


# --------------------------------------------------------------------------- logits: sampling and candidate selection


def logits(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, **parameters: Any
) -> Inputs:
    """Return (GOOD's logits [B, V], BAD's logits [B, V], sampling, None for no bans)."""
    return *sampling_ops.sampling_inputs(**parameters)(batch, vocab_size, dtype, device, seed), None


def banned_logits(
    batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int, **parameters: Any
) -> Inputs:
    """Return :func:`logits` and bans of the five best tokens of each row and of some others."""
    good, bad, sampling, _ = logits(batch, vocab_size, dtype, device, seed, **parameters)
    generator = torch.Generator(device).manual_seed(seed)
    others = torch.randint(-1, vocab_size, (batch, 6), generator=generator, device=device)
    return good, bad, sampling, torch.cat([good.float().topk(5).indices, others], 1)


def faulty_logits(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return :func:`banned_logits` with faults.

    In row 0, GOOD has NaN. In row 1, only banned tokens are possible. In row 2, BAD has NaN at a candidate.
    """
    good, bad, sampling, banned = banned_logits(batch, vocab_size, dtype, device, seed)
    good[0, vocab_size // 3] = torch.nan
    if batch > 2:
        possible = good[1, banned[1, :5]].clone()
        good[1] = -torch.inf
        good[1, banned[1, :5]] = possible
        allowed = good[2].float().index_fill(0, banned[2].clamp(min=0), -torch.inf)
        bad[2, allowed.argmax()] = torch.nan
    return good, bad, sampling, banned


def sample_reference_candidates(
    call: Callable[..., Outputs],
    good: torch.Tensor,
    bad: torch.Tensor,
    sampling: SamplingTensors,
    banned: torch.Tensor | None,
) -> Outputs:
    """Call an implementation of `sample_candidates` with the reference's candidates."""
    return call(
        reference.select_candidates(good, sampling.margin, banned, good.shape[1], sampling_ops.CAPACITY), bad, sampling
    )


_CALLS: dict[str, tuple[Callable[..., Outputs], Callable[..., Outputs]]] = {  # (fused, reference)
    "contrastive_sample": (
        sampling_ops.sampling_call(sampling_ops.triton_contrastive_sample),
        sampling_ops.sampling_call(reference.contrastive_sample),
    ),
    "select_candidates": (sampling_ops.select_candidates_fused, sampling_ops.select_candidates_reference),
    "sample_candidates": (
        partial(sample_reference_candidates, sampling_ops.sample_candidates_fused),
        partial(sample_reference_candidates, sampling_ops.sample_candidates_reference),
    ),
}
_INPUTS: dict[str, Callable[..., Inputs]] = {
    "banned tokens": banned_logits,
    "faulty rows": faulty_logits,
    "more candidates than the list holds": partial(logits, alpha=LONG),
    "banned tokens, top-k 40, top-p 0.9": partial(banned_logits, alpha=0, top_k=40, top_p=0.9),
    "greedy": partial(logits, temperature=0.0),
}
LOGIT_EDGES = [
    edge_op(f"{name}, {inputs}", make, *calls, torch_floats=exact_floats)
    for name, calls in _CALLS.items()
    for inputs, make in _INPUTS.items()
    if name == "contrastive_sample" or inputs in ("banned tokens", "faulty rows", "more candidates than the list holds")
]

# ------------------------------------------------------------- hidden states: select_candidates_linear, gather_logits


def whole_numbers(
    batch: int,
    vocab_size: int,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    width: int = linear_ops.WIDTH,
    margin: float = 2.5,
) -> Inputs:
    """Return (hidden [B, D], weight [V, D], sampling, banned) made of -1, 0 and 1: sums are exact in any order."""
    generator = torch.Generator(device).manual_seed(seed)
    hidden, weight = (
        torch.randint(-1, 2, (size, width), generator=generator, device=device).to(dtype)
        for size in (batch, vocab_size)
    )
    banned = torch.randint(-1, vocab_size, (batch, 4), generator=generator, device=device)
    return hidden, weight, make_sampling_tensors(batch, alpha=math.exp(-margin), device=device), banned


def faulty_hidden(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return :func:`whole_numbers` with NaN in row 0."""
    hidden, *others = whole_numbers(batch, vocab_size, dtype, device, seed)
    hidden[0, 5] = torch.nan
    return hidden, *others


def odd_counts(batch: int, vocab_size: int, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
    """Return candidates whose count is a fault code in row 0, and larger than the list in row 1."""
    hidden, weight, token, count = linear_ops.gather_logits_inputs(batch, vocab_size, dtype, device, seed)
    count[0] = codes.NAN_GOOD
    if batch > 1:
        count[1] = token.shape[1] + 5
        token[1] = torch.arange(token.shape[1], device=device) % vocab_size
    return hidden, weight, token, count


def _select_candidates_linear(name: str, make: Callable[..., Inputs]) -> Op:
    return edge_op(
        f"select_candidates_linear, {name}",
        make,
        linear_ops.select_candidates_linear_fused,
        linear_ops.select_candidates_linear_reference,
        torch_floats=exact_floats,
    )


LINEAR_EDGES = [
    _select_candidates_linear("whole numbers", whole_numbers),
    _select_candidates_linear("whole numbers, width 4096", partial(whole_numbers, width=4096)),
    _select_candidates_linear("whole numbers, width 200", partial(whole_numbers, width=200)),
    _select_candidates_linear("more candidates than the list holds", partial(whole_numbers, margin=40.0)),
    _select_candidates_linear("NaN in a row", faulty_hidden),
    edge_op(
        "gather_logits, odd counts",
        odd_counts,
        linear_ops.gather_logits_fused,
        linear_ops.gather_logits_reference,
        torch_floats=lambda outputs, *inputs: {"score": gather_logits_torch(*inputs)},
    ),
]


def gather_logits_torch(
    hidden: torch.Tensor, weight: torch.Tensor, token: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    listed = torch.arange(token.shape[1], device=token.device) < count.unsqueeze(1)
    return torch.where(listed, linear_ops.gather_logits_eager(hidden, weight, token, count), -torch.inf)
