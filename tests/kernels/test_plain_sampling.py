"""Sampling without contrast in C++: bounds rule out most tokens of a long row, and must not change the drawn token.

Rows are long enough for the bounds to apply: 20 blocks of 256 logits, of which the last is incomplete.
"""

import pytest
import torch
from torch import Tensor

from cdgen_kernels import SamplingTensors, contrastive_sample, make_sampling_tensors, reference, select_candidates
from tests.helpers.implementations import IMPLEMENTATIONS, NO_CPP, run_sample, run_select_candidates

pytestmark = pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason=NO_CPP)

ROWS, VOCAB = 24, 5003
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
METHODS: dict[str, dict[str, float]] = {
    "ancestral": {},
    "ancestral, cold": {"temperature": 0.3},
    "ancestral, hot": {"temperature": 4.0},
    "greedy": {"temperature": 0},
    "greedy of three": {"temperature": 0, "top_k": 3},
    "top-k 1": {"top_k": 1},
    "top-k 20": {"top_k": 20},  # as many as blocks
    "top-k 21": {"top_k": 21},  # more than blocks: bounded by pieces of 16 logits
    "top-k 313": {"top_k": 313},  # as many as pieces
    "top-k 314": {"top_k": 314},
    "top-k 4000": {"top_k": 4000},
    "top-p 0.1": {"top_p": 0.1},
    "top-p 0.9": {"top_p": 0.9},
    "top-p 0.9999": {"top_p": 0.9999},
    "top-p, hot": {"top_p": 0.7, "temperature": 3.0},
    "top-k and top-p": {"top_k": 60, "top_p": 0.8},
    "min-p": {"alpha": 1e-4},
    "min-p, hot": {"alpha": 0.5, "temperature": 4.0},  # most of the mass is outside
    "min-p and top-p": {"alpha": 1e-3, "top_p": 0.9},
    "weight 0": {"good_weight": 0.0, "top_k": 5},
    "weight 2": {"good_weight": 2.0, "top_p": 0.6},
}


def plain(rows: int, alpha: float = 0.0, **parameters: float) -> SamplingTensors:
    return make_sampling_tensors(rows, alpha=alpha, contrast_strength=0, seed=3, **parameters)


def rows_of_logits(dtype: torch.dtype) -> Tensor:
    """Return logits [ROWS, VOCAB] of several shapes."""
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(4, VOCAB, generator=generator)
    shuffled = torch.stack([torch.randperm(VOCAB, generator=generator) for _ in range(4)])
    in_order = torch.arange(VOCAB).float()
    return torch.cat(
        [
            12 - 1.1 * torch.log1p(shuffled) + 0.3 * noise,
            40 - 4 * torch.log1p(in_order) + noise,  # frequent tokens first: most blocks are far below the first
            (2 * noise).round() / 2,  # ties everywhere
            torch.full_like(noise, -1.25),
            noise * torch.tensor([1e4, 6e4, 1e-3, 1e-5]).unsqueeze(1),
            torch.where(noise > 1.5, noise, -torch.inf),
        ]
    ).to(dtype)


def assert_same(good: Tensor, sampling: SamplingTensors, banned: Tensor | None = None) -> None:
    """Check the tokens of C++ and their log-probabilities against the reference."""
    wanted = run_sample("reference", good, None, sampling, banned=banned, logprobs=True)
    got = run_sample("cpp", good, None, sampling, banned=banned, logprobs=True)
    for a, b in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    assert got.token.equal(wanted.token) and (wanted.token >= 0).all()
    assert run_sample("cpp", good, None, sampling, banned=banned).token.equal(wanted.token)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_draws_the_tokens_of_the_reference(method: str) -> None:
    for dtype in DTYPES:
        assert_same(rows_of_logits(dtype), plain(ROWS, **METHODS[method]))


@pytest.mark.parametrize("method", METHODS)
def test_banned_tokens_count_as_impossible(method: str) -> None:
    """The best tokens are banned, and with them all of one block and some of each other block."""
    good = rows_of_logits(torch.float32)[:16]
    generator = torch.Generator().manual_seed(2)
    anywhere = torch.randint(-3, VOCAB + 3, (16, 900), generator=generator)  # with duplicates, and ids out of range
    banned = torch.cat([good.topk(40).indices, torch.arange(512, 768).expand(16, -1), anywhere], 1)
    assert_same(good, plain(16, **METHODS[method]), banned)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_bans_are_a_mask_of_minus_infinity(dtype: torch.dtype) -> None:
    good = rows_of_logits(torch.float32)[:16]
    generator = torch.Generator().manual_seed(4)
    for count in (1, 3, 64, 4000):
        banned = torch.stack([torch.randperm(VOCAB, generator=generator) for _ in range(16)])[:, :count]
        masked = good.scatter(1, banned, -torch.inf)
        padded = torch.nn.functional.pad(banned, (0, 5), value=-1).to(dtype)
        for sampling in (plain(16), plain(16, alpha=0.1), plain(16, top_p=0.5)):
            token = contrastive_sample(good, None, sampling, banned=padded).token
            assert token.equal(contrastive_sample(masked, None, sampling).token)
            assert (token.unsqueeze(1) != banned).all()
        wanted = reference.select_candidates(masked, plain(16, alpha=0.1).margin, None, VOCAB, 64)
        for a, b in zip(select_candidates(good, plain(16, alpha=0.1), banned=padded, capacity=64), wanted, strict=True):
            assert a.equal(b)


def test_nan_of_a_banned_token_is_a_fault_and_a_row_without_other_tokens_too() -> None:
    good = rows_of_logits(torch.float32)[:3]
    good[1, 700] = torch.nan
    banned = torch.full((3, VOCAB), -1)
    banned[1, 0], banned[2] = 700, torch.arange(VOCAB)
    for sampling in (plain(3), plain(3, top_k=5), plain(3, temperature=0)):
        wanted = run_sample("reference", good, None, sampling, banned=banned).token
        assert run_sample("cpp", good, None, sampling, banned=banned).token.equal(wanted)
        assert wanted[0] >= 0 and (wanted[1:] < 0).all()
    counts = run_select_candidates("cpp", good, plain(3).margin, banned, VOCAB, 8).count
    assert counts[1:].tolist() == wanted[1:].tolist()


def test_scores_that_tie_only_after_rounding_go_to_the_lower_id() -> None:
    """Next to a logit of 1e30 all others are equal in float64, although their float32 logits differ."""
    good = torch.randn(60, VOCAB, generator=torch.Generator().manual_seed(5)).sort(1).values  # the best id is the last
    good[:, -1] = 1e30
    for parameters in ({"top_k": 4}, {"top_k": 300}, {"top_p": 0.9}):
        sampling = plain(60, good_weight=1e-30, **parameters)
        token = run_sample("cpp", good, None, sampling).token
        assert token.equal(run_sample("reference", good, None, sampling).token)
        if parameters == {"top_k": 4}:
            assert set(token.tolist()) == {0, 1, 2, VOCAB - 1}


def test_weights_and_temperatures_at_the_limits_of_float32() -> None:
    """Their ratio leaves the range of float32, in which the bounds are computed."""
    good = rows_of_logits(torch.float32)
    for weight, temperature in ((1e38, 1.0), (1e38, 1.1e-5), (1e-37, 1.0), (1e-37, 1e38), (1.0, 1e38)):
        for cut in ({}, {"top_p": 0.9}, {"top_k": 9}):
            assert_same(good, plain(ROWS, good_weight=weight, temperature=temperature, **cut))
    assert_same(1e-40 * good[:8], plain(8, good_weight=3e38, temperature=0.01))  # differences of subnormal logits count


def test_the_nucleus_of_many_equal_tokens() -> None:
    """p = k / n keeps k of n equal tokens: the lower ids."""
    good = torch.zeros(300, 4096)
    token = run_sample("cpp", good, None, plain(300, top_p=1 / 64)).token
    assert token.max() < 64 and len(token.unique()) > 50
