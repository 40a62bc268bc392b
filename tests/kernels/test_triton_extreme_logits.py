"""The Triton sampling kernels on the extreme logits of test_extreme_logits.py: compiled PTX is executed.

Scores are float32 there, so differences of 1e17 and more are coarser than in the reference, but draws are the same.
"""

import math
import os

import pytest
import torch

from cdgen_kernels import codes, make_sampling_tensors, reference
from tests.helpers.extreme_logits import extreme_rows
from tests.kernels.test_extreme_logits import twentieths

pytest.importorskip("triton", reason="Triton is not installed")
if os.environ.get("TRITON_INTERPRET"):
    pytest.skip("kernels cannot be compiled under TRITON_INTERPRET", allow_module_level=True)

from cdgen_kernels.triton import candidates as triton_candidates
from cdgen_kernels.triton import sample as triton_sample
from tools.ptx_sim import Device

pytestmark = pytest.mark.ptx

MASK = (codes.MASK, 0.0)
MODES = [MASK, (codes.CONSTANT, -20.0), (codes.SHIFTED_GOOD, 0.0)]


def draw(*problem):  # type: ignore[no-untyped-def]
    """Return (the kernel's samples, the reference's samples)."""
    with Device(90, max_blocks=20_000_000):
        got = triton_sample.contrastive_sample(*problem)
    return got, reference.contrastive_sample(*problem)


@pytest.mark.parametrize("outside", MODES)
@pytest.mark.parametrize("vocab_size", [40, 300])
def test_tokens_and_log_probabilities_at_the_limits(vocab_size: int, outside: tuple[int, float]) -> None:
    """Up to 128 candidates are drawn in registers, the 300 of some rows in tiles."""
    good, bad = (x.repeat_interleave(2, 0) for x in extreme_rows(vocab_size))
    rows = len(good)
    sampling = make_sampling_tensors(rows, alpha=[0, 0.1] * (rows // 2), seed=5)
    temperature = torch.tensor([1.0, 0.3, 0.0, 1e-30, 2.0]).repeat(rows // 5 + 1)[:rows]
    sampling = sampling._replace(temperature=temperature)
    got, wanted = draw(good, bad, sampling, None, vocab_size, *outside, True)
    assert got.token.equal(wanted.token)
    for a, b in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_extreme_rows_without_bad_and_from_lists() -> None:
    good, bad = (x.repeat_interleave(2, 0) for x in extreme_rows(40))
    sampling = make_sampling_tensors(len(good), alpha=[0, 0.1] * (len(good) // 2), good_weight=1.5, seed=6)
    got, wanted = draw(good, None, sampling, None, 40, *MASK, True)
    assert got.token.equal(wanted.token)
    candidates = reference.select_candidates(good, sampling.margin, None, 40, 40)
    with Device(90):
        drawn = triton_candidates.sample_candidates(candidates, bad, sampling, 40, False, True)
    expected = reference.sample_candidates(candidates, bad, sampling, 40, False, True)
    assert drawn.token.equal(expected.token)
    torch.testing.assert_close(drawn.logprob, expected.logprob, rtol=1e-4, atol=1e-4)


def test_top_p_keeps_no_token_beyond_a_sum_of_exactly_p() -> None:
    logits, p, share = twentieths()
    sampling = make_sampling_tensors(len(logits), alpha=0, contrast_strength=0, top_p=p)
    got, wanted = draw(logits, None, sampling, None, 6, *MASK, True)
    assert got.token.equal(wanted.token)
    weight = logits.exp().gather(1, got.token.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(weight / got.logprob.exp(), share, rtol=1e-5, atol=0)


@pytest.mark.parametrize("outside", MODES)
def test_ties_and_nan(outside: tuple[int, float]) -> None:
    """Ties go to the lower id, and NaN of BAD matters only if a score needs it."""
    generator = torch.Generator().manual_seed(7)
    good = (20 + torch.randn(12, 64, generator=generator)).bfloat16()
    bad = good.float() + torch.arange(12).unsqueeze(1) / 8
    greedy = make_sampling_tensors(12, temperature=0)
    got, wanted = draw(good, bad, greedy, None, 64, *outside, False)
    assert got.token.equal(wanted.token)

    outsider, candidate = good.float().argmin(1), good.float().argmax(1)
    for place, strengths in ((outsider, 1.0), (candidate, 1.0), (candidate, 0.0)):
        broken = bad.scatter(1, place.unsqueeze(1), torch.nan)
        sampling = make_sampling_tensors(12, contrast_strength=strengths)
        for logprobs in (False, True):
            got, wanted = draw(good, broken, sampling, None, 64, *outside, logprobs)
            assert got.token.equal(wanted.token)
        if wanted.token[0] >= 0:
            assert got.bad_logprob.isnan().all() and not got.logprob.isnan().any()
    assert math.isfinite(float(got.good_logprob.sum()))
