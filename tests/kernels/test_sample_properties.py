"""C++ against the float64 reference on all kinds of input: same candidates, same tokens, same log-probabilities.

Tokens are compared for equality. Both implementations compute scores and noise in float64 from the same float32
threshold. They can only differ if two noisy scores are within a few units of 1e-16 of each other; no example here is.
"""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cdgen_kernels import SamplingTensors, codes, make_sampling_tensors, reference
from cdgen_kernels.codes import OutsideHead
from tests.helpers.implementations import (
    IMPLEMENTATIONS,
    NO_CPP,
    run_sample,
    run_sample_candidates,
    run_select_candidates,
)

pytestmark = pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason=NO_CPP)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Sizes around those of a block (256), a vector (8) and a Philox block (4); primes; real vocabularies and larger.
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 31, 255, 256, 257, 263, 511, 512, 513, 1021, 4099, 32_000, 50_257, 128_256, 300_000]
SHAPES = ["peaked", "one", "flat", "grid", "normal", "mostly -inf", "with +inf"]


def make_logits(generator: torch.Generator, shape: str, batch: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return random logits [batch, width] whose distribution has one of SHAPES."""
    x = torch.randn(batch, width, generator=generator)
    if shape == "peaked":  # Zipf-like, as from a language model
        ranks = torch.stack([torch.randperm(width, generator=generator) for _ in range(batch)]) if batch else x
        x = -1.5 * torch.log1p(ranks.float()) + 0.3 * x
    elif shape == "one":  # one candidate
        x[torch.arange(batch), torch.randint(width, (batch,), generator=generator)] += 60
    elif shape == "flat":  # every token is a candidate, and all scores are equal
        x = torch.full_like(x, 1.25)
    elif shape == "grid":  # multiples of ln 2, so that many tokens are at the threshold or just beside it
        x = (2 * x).round() * math.log(2)
    elif shape == "mostly -inf":
        x = torch.where(torch.rand(batch, width, generator=generator) < 0.9, -torch.inf, x)
        x[torch.arange(batch), torch.randint(width, (batch,), generator=generator)] = 0.5
    elif shape == "with +inf":
        x = torch.where(torch.rand(batch, width, generator=generator) < 0.1, torch.inf, 3 * x)
    return x.to(dtype)


def strided(x: Tensor, layout: str) -> Tensor:
    """Return the same values with other strides: rows of a wider tensor, every second row, or one row for all."""
    batch, width = x.shape
    if layout == "wide":
        wide = torch.full((batch, width + 13), torch.nan, dtype=x.dtype)
        wide[:, 5 : 5 + width] = x
        return wide[:, 5 : 5 + width]
    if layout == "every second":
        both = torch.full((2 * batch, width), torch.nan, dtype=x.dtype)
        both[::2] = x
        return both[::2]
    return x[:1].expand(batch, width) if layout == "shared" else x


class Problem(NamedTuple):
    """Arguments of the sampling ops."""

    good: Tensor
    bad: Tensor | None
    sampling: SamplingTensors
    banned: Tensor | None
    vocab_size: int
    outside_head: OutsideHead
    logprobs: bool


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Generate a problem of any size, dtype, layout and parameters."""
    size = draw(st.sampled_from(SIZES))
    batch = draw(st.sampled_from([0, 1, 2, 3, 5] if size < 5000 else [0, 1, 2]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    pad_good, pad_bad = draw(st.sampled_from([0, 0, 1, 64])), draw(st.sampled_from([0, 0, 3, 128]))
    good = make_logits(generator, draw(st.sampled_from(SHAPES)), batch, size, draw(st.sampled_from(DTYPES)))
    bad = make_logits(generator, draw(st.sampled_from(SHAPES)), batch, size, draw(st.sampled_from(DTYPES)))
    # If the padding were read, it would win.
    good = torch.nn.functional.pad(good, (0, pad_good), value=torch.inf)
    bad = torch.nn.functional.pad(bad, (0, pad_bad), value=-torch.inf)
    layouts = st.sampled_from(["plain", "wide", "every second", "shared"])
    good, bad = strided(good, draw(layouts)), strided(bad, draw(layouts))

    def per_row(*values: float) -> list[float]:
        return [draw(st.sampled_from(values)) for _ in range(batch)]

    sampling = make_sampling_tensors(
        batch,
        alpha=per_row(0.1, 0.5, 0.25, 1.0, 0.0, 1e-3),
        good_weight=per_row(1.0, 1.5, 0.0),
        contrast_strength=per_row(1.0, 0.5, 0.0, -0.5),
        temperature=per_row(1.0, 0.7, 2.0, 0.0),
        top_k=per_row(0, 1, 3, 200, 10**6),
        top_p=per_row(1.0, 0.9, 0.5, 1e-4),
        seed=per_row(0, 1, -1, 2**63 - 1),
        sequence=per_row(0, 7, 2**40 + 3),
        position=per_row(0, 1, 2**31),
    )
    banned = None
    if draw(st.booleans()):
        banned = torch.randint(-1, size + 2, (batch, draw(st.integers(0, 6))), generator=generator)
        if banned.numel() and draw(st.booleans()):
            banned[:, 0] = good[:, :size].float().argmax(1)  # the best token
    bad = draw(st.sampled_from([bad, bad, bad, None]))
    outside = draw(st.sampled_from(["mask", "mask", "shifted_good", -20.0, -2.0]))
    return Problem(good, bad, sampling, banned, size, outside, draw(st.booleans()))


slow_examples = settings(
    max_examples=400, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)


@given(problems())
@slow_examples
@pytest.mark.slow
def test_cpp_draws_the_tokens_of_the_reference(problem) -> None:
    good, bad, sampling, banned, size, outside, logprobs = problem
    call = dict(outside_head=outside, banned=banned, vocab_size=size, logprobs=logprobs)
    wanted = run_sample("reference", good, bad, sampling, **call)
    got = run_sample("cpp", good, bad, sampling, **call)
    assert got.token.tolist() == wanted.token.tolist()
    drawn = wanted.token >= 0  # the log-probabilities of a faulty row are undefined
    for a, b in zip(got[1:], wanted[1:], strict=True):
        if logprobs:
            torch.testing.assert_close(a[drawn], b[drawn], rtol=1e-5, atol=1e-5)


@given(problems(), st.sampled_from([1, 4, 64, 1024]))
@slow_examples
@pytest.mark.slow
def test_cpp_selects_and_draws_the_candidates_of_the_reference(problem, capacity) -> None:
    good, bad, sampling, banned, size, _, logprobs = problem
    wanted = reference.select_candidates(good, sampling.margin, banned, size, capacity)
    got = run_select_candidates("cpp", good, sampling.margin, banned, size, capacity)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    from_list = reference.sample_candidates(wanted, bad, sampling, size, False, logprobs)
    drawn = from_list.token >= 0
    from_cpp = run_sample_candidates("cpp", got, bad, sampling, size, logprobs)
    assert from_cpp.token.tolist() == from_list.token.tolist()
    if bad is not None:
        gathered = bad.gather(1, wanted.token.clamp(min=0).long())
        for implementation in ("cpp", "reference"):
            from_gathered = run_sample_candidates(
                implementation, wanted, gathered, sampling, size, False, gathered=True
            )
            assert from_gathered.token.tolist() == from_list.token.tolist()
    if logprobs:
        torch.testing.assert_close(from_cpp.logprob[drawn], from_list.logprob[drawn], rtol=1e-5, atol=1e-5)
    fits = (wanted.count >= 0) & (wanted.count <= capacity)
    whole = run_sample("reference", good, bad, sampling, banned=banned, vocab_size=size)
    assert from_list.token[fits].tolist() == whole.token[fits].tolist()


@given(problems())
@slow_examples
@pytest.mark.slow
def test_nan_is_reported_per_row(problem) -> None:
    good, bad, sampling, banned, size, outside, logprobs = problem
    if good.shape[0] == 0:
        return
    good = good.clone()
    row, column = good.shape[0] - 1, size // 2
    good[row, column] = -torch.nan if size % 2 else torch.nan  # NaN of either sign
    call = dict(outside_head=outside, banned=banned, vocab_size=size, logprobs=logprobs)
    assert run_sample("cpp", good, bad, sampling, **call).token[row] == codes.NAN_GOOD
    assert (
        run_sample("cpp", good, bad, sampling, **call).token.tolist()
        == run_sample("reference", good, bad, sampling, **call).token.tolist()
    )
    assert run_select_candidates("cpp", good, sampling.margin, banned, size, 4).count[row] == codes.NAN_GOOD
