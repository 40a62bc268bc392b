"""Problems for paged_attention, and the comparison of executed PTX with the reference. Needs Triton."""

from collections.abc import Callable
from typing import Any

import torch

from cdgen_kernels import reference
from cdgen_kernels.triton import attention as triton_attention
from tests.helpers.paged import decode, make_paged
from tools.ptx_sim import Device
from tools.ptx_sim.device import Launch


def make_problem(
    lengths: list[int],
    heads: int = 2,
    kv_heads: int = 2,
    dim: int = 64,
    dtype: torch.dtype = torch.bfloat16,
    cache_dtype: torch.dtype | None = None,
    page: int = 16,
    tokens: list[tuple[int, int]] | None = None,
    window: int = 0,
    dropout: float = 0.0,
) -> list[Any]:
    """Return arguments of paged_attention: sequences of these lengths, queried by their last tokens or by `tokens`."""
    tokens = tokens or decode(lengths)
    paged = make_paged(lengths, tokens, heads, kv_heads, dim, page, dtype, cache_dtype, seed=sum(lengths) + dim)
    wide = torch.full((len(tokens), heads, 3, dim), torch.nan, dtype=dtype)  # so that all strides differ
    wide[:, :, 1] = paged.q
    noise = (dropout, torch.tensor([-(2**60) + 12345]), torch.arange(len(tokens)) + 2**33, 5)
    return [wide[:, :, 1], *paged[1:], dim**-0.5, window, *noise]


def run(
    problem: list[Any],
    sm: int = 90,
    mutate: Callable[[str], str] | None = None,
    *,
    prefill: bool = False,
    shared_lengths: torch.Tensor | None = None,
    **scales: torch.Tensor,
) -> list[Launch]:
    """Compare with the reference, and return the launches. `scales` are those of fp8 pages."""
    with Device(sm, mutate, max_blocks=10_000_000) as device:
        got = triton_attention.paged_attention(*problem, prefill, shared_lengths, **scales)
    counters = [launch.arguments["arrivals_ptr"] for launch in device.launches if "arrivals_ptr" in launch.arguments]
    assert all(x.eq(0).all() for x in counters)  # the next launch on this stream counts from 0 again
    q, keys, values = (x.double() for x in problem[:3])
    wide = {name: x.double() for name, x in scales.items()}
    exact = reference.paged_attention(q, keys, values, *problem[3:], **wide)
    half_ulp = torch.finfo(got.dtype).eps / 2
    allowed = half_ulp * exact.abs() + 4e-6
    if any("mma" in opcode for launch in device.launches for opcode in launch.report.warp_instructions):
        allowed += half_ulp * reference.paged_attention(q, keys, values.abs(), *problem[3:], **wide)
    same = (got == exact) | (got.isnan() & exact.isnan())
    assert (same | ((got - exact).abs() <= allowed)).all()
    return device.launches


def check(
    problem: list[Any], sm: int = 90, mutate: Callable[[str], str] | None = None, prefill: bool = False
) -> Launch:
    """Compare with the reference, and return the only launch."""
    (only,) = run(problem, sm, mutate, prefill=prefill)
    return only
