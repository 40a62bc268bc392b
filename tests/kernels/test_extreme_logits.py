"""Draws next to very large logits, at very low temperatures, at ties, and with NaN that no score needs.

Every implementation must draw what the definition says there, too. test_triton_extreme_logits.py does the same for the
Triton kernels.
"""

import math

import pytest
import torch
from torch import Tensor

from cdgen_kernels import Samples, SamplingTensors, codes, make_sampling_tensors, reference
from cdgen_kernels.codes import OutsideHead
from tests.helpers.chi_square import FALSE_ALARM, p_value
from tests.helpers.extreme_logits import BIG, OFFSETS, extreme_rows
from tests.helpers.implementations import IMPLEMENTATIONS, run_sample, run_sample_candidates

MODES: list[OutsideHead] = ["mask", -20.0, 3.0, "shifted_good"]
each_implementation = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def repeat(row: Tensor, count: int) -> Tensor:
    return row.expand(count, -1)


def from_lists(
    implementation: str, good: Tensor, bad: Tensor | None, sampling: SamplingTensors, logprobs: bool = True
) -> Samples:
    """Draw in two steps, from complete lists of candidates."""
    vocab_size = good.shape[1]
    candidates = reference.select_candidates(good, sampling.margin, None, vocab_size, vocab_size)
    return run_sample_candidates(implementation, candidates, bad, sampling, vocab_size, logprobs)


@each_implementation
@pytest.mark.parametrize("offset", OFFSETS)
def test_noise_is_not_lost_next_to_large_logits(implementation: str, offset: float) -> None:
    """Equal logits give equal chances, whatever their size."""
    count, vocab_size = 3000, 32
    flat, uniform = torch.zeros(count, vocab_size), torch.full((vocab_size,), 1 / vocab_size).double()
    sampling = make_sampling_tensors(count, contrast_strength=1.5, temperature=0.5)
    wanted = run_sample(implementation, flat, None, sampling).token
    assert p_value(wanted.numpy(), uniform.numpy()) > FALSE_ALARM
    for mode in MODES:
        for good, bad in ((flat + offset, None), (flat + offset, flat), (flat, flat - offset), (flat + offset,) * 2):
            drawn = run_sample(implementation, good, bad, sampling, outside_head=mode, logprobs=True)
            assert drawn.token.equal(wanted)
            for logprob in drawn[1:]:
                torch.testing.assert_close(logprob, torch.full((count,), -math.log(vocab_size)))
    assert from_lists(implementation, flat + offset, flat, sampling).token.equal(wanted)


@each_implementation
@pytest.mark.parametrize("offset", OFFSETS)
def test_a_large_offset_of_one_model_leaves_the_other_its_say(implementation: str, offset: float) -> None:
    varied = torch.randn(20, generator=torch.Generator().manual_seed(3))
    sampling = make_sampling_tensors(300, alpha=1e-3)
    flat = torch.zeros(300, 20)
    for mode in MODES:
        for model in ("good", "bad"):
            pair = {"good": repeat(varied, 300), "bad": repeat(varied, 300), model: flat}
            wanted = run_sample(implementation, **pair, sampling=sampling, outside_head=mode, logprobs=True)
            pair[model] = flat + offset
            drawn = run_sample(implementation, **pair, sampling=sampling, outside_head=mode, logprobs=True)
            assert drawn.token.equal(wanted.token) and len(drawn.token.unique()) > 5
            torch.testing.assert_close(torch.stack(drawn[1:]), torch.stack(wanted[1:]))


@each_implementation
def test_equal_models_cancel_and_masks_of_finite_size_count_as_masks(implementation: str) -> None:
    count = 2000
    huge = repeat(1e17 * torch.randn(8, generator=torch.Generator().manual_seed(1)), count)
    sampling = make_sampling_tensors(count, alpha=0)
    drawn = run_sample(implementation, huge, huge, sampling, logprobs=True)
    torch.testing.assert_close(drawn.logprob, torch.full((count,), -math.log(8)))
    assert len(drawn.token.unique()) == 8

    good = torch.tensor([1.0, -BIG, 2.0, 0.5])
    infinite = torch.where(good == -BIG, -torch.inf, good)
    for allowed, bad in ((good, None), (infinite, None), (good, torch.zeros(4)), (torch.zeros(4), -good)):
        rows = None if bad is None else repeat(bad, count)
        token = run_sample(implementation, repeat(allowed, count), rows, sampling).token
        assert set(token.tolist()) == {0, 2, 3}

    good, bad = torch.tensor([0.0, 1.0, 9.0, 9.0]), torch.tensor([-BIG, -BIG, 0.0, 1.0])
    token = run_sample(implementation, repeat(good, count), repeat(bad, count), sampling).token
    exact = torch.softmax(torch.tensor([0.0, 1.0, -torch.inf, -torch.inf]).double(), 0)  # GOOD decides between 0 and 1
    assert p_value(token.numpy(), exact.numpy()) > FALSE_ALARM


@pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason="the C++ extension does not run")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 0.3, 0.0, 1e-30, 1e30])
def test_cpp_draws_the_tokens_of_the_reference_at_the_limits(mode: OutsideHead, temperature: float) -> None:
    good, bad = (x.repeat(8, 1) for x in extreme_rows(40))
    rows = len(good)
    cuts = dict(alpha=[0, 0.1] * (rows // 2), top_k=[0, 0, 0, 7, 0] * (rows // 5) + [0] * (rows % 5))
    sampling = make_sampling_tensors(rows, seed=5, top_p=[1, 1, 0.8, 1] * (rows // 4), **cuts)
    sampling = sampling._replace(temperature=torch.full((rows,), temperature))
    wanted, got = (run_sample(i, good, bad, sampling, outside_head=mode, logprobs=True) for i in IMPLEMENTATIONS)
    assert got.token.equal(wanted.token) and (wanted.token >= 0).all()
    for a, b in zip(got[1:], wanted[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@each_implementation
@pytest.mark.parametrize("mode", MODES)
def test_draws_at_low_temperatures_tend_to_those_at_0(implementation: str, mode: OutsideHead) -> None:
    """Temperatures below 1e-5 count as 0; a lower one that is set by hand draws the best score with certainty."""
    generator = torch.Generator().manual_seed(2)
    good, bad = (3 * torch.randn(200, 50, generator=generator) for _ in range(2))
    settings = dict(outside_head=mode, logprobs=True)
    greedy = make_sampling_tensors(200, temperature=0)
    wanted = run_sample(implementation, good, bad, greedy, **settings)
    for temperature in (1e-20, 1.1e-38, 9e-6):
        low = make_sampling_tensors(200, temperature=temperature)
        for a, b in zip(low, greedy, strict=True):
            assert a.equal(b)
    for temperature in (1e-45, 1e-38, 1e-20, 1e-7):
        low = greedy._replace(temperature=torch.full((200,), temperature))
        drawn = run_sample(implementation, good, bad, low, **settings)
        if mode in ("mask", "shifted_good"):  # a constant is not divided by the temperature
            certain = drawn.logprob == 0  # shifted_good: the best other token ties with a single candidate
            assert drawn.token[certain].equal(wanted.token[certain])
            assert certain.all() if mode == "mask" else certain.float().mean() > 0.5
        assert torch.stack(drawn[1:]).isfinite().all()
    assert make_sampling_tensors(1, temperature=1.1e-5).temperature > 0


@each_implementation
def test_equal_best_tokens_share_the_draws_at_low_temperatures(implementation: str) -> None:
    good = torch.tensor([2.0, 2.0, 1.999]).repeat(400, 1)
    low = make_sampling_tensors(400)._replace(temperature=torch.full((400,), 1e-30))
    drawn = run_sample(implementation, good, None, low, logprobs=True)
    assert set(drawn.token.tolist()) == {0, 1}
    torch.testing.assert_close(drawn.logprob, torch.full((400,), -math.log(2)))


def twentieths() -> tuple[Tensor, Tensor, Tensor]:
    """Return (logits, p, the share of the tokens that weigh exactly p or more): random distributions in twentieths."""
    generator = torch.Generator().manual_seed(0)
    logits, shares = [], []
    for _ in range(400):
        cuts = (torch.randperm(19, generator=generator)[:5] + 1).sort().values.tolist()
        parts = torch.tensor([b - a for a, b in zip([0, *cuts], [*cuts, 20], strict=True)])
        parts = parts[torch.randperm(6, generator=generator)]
        kept = int(torch.randint(1, 6, (), generator=generator))
        shares.append(int(parts.sort(descending=True).values[:kept].sum()))
        logits.append((parts / 20).log())
    return torch.stack(logits), torch.tensor(shares).double() / 20, torch.tensor(shares) / 20


@each_implementation
def test_top_p_keeps_no_token_beyond_a_sum_of_exactly_p(implementation: str) -> None:
    logits, p, share = twentieths()
    sampling = make_sampling_tensors(len(logits), alpha=0, contrast_strength=0, top_p=p)
    for drawn in (
        run_sample(implementation, logits, None, sampling, logprobs=True),
        from_lists(implementation, logits, None, sampling),
    ):
        weight = logits.exp().gather(1, drawn.token.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(weight / drawn.logprob.exp(), share)
    logits = torch.tensor([0.5, 0.3, 0.1, 0.1]).log().repeat(200, 1)
    for p, kept in ((0.8, 2), (0.5, 1), (0.80001, 3), (0.9, 3), (0.91, 4), (1e-30, 1), (1, 4)):
        settings = make_sampling_tensors(200, contrast_strength=0, top_p=p)
        assert len(run_sample(implementation, logits, None, settings).token.unique()) == kept


@each_implementation
def test_top_p_of_equal_tokens(implementation: str) -> None:
    """p = k / n keeps k of n tokens; the lower ids come first."""
    for n in (10, 20, 1000):
        good = torch.zeros(n // 10, n)
        p = [k / 10 for k in range(1, 11)] * (n // 100) or [k / 10 for k in range(1, n // 10 + 1)]
        sampling = make_sampling_tensors(n // 10, alpha=0, contrast_strength=0, top_p=p)
        logprob = run_sample(implementation, good, None, sampling, logprobs=True).logprob
        assert (-logprob).exp().round().tolist() == [round(x * n) for x in p]


@each_implementation
@pytest.mark.parametrize("mode", MODES)
def test_ties_go_to_the_lower_id(implementation: str, mode: OutsideHead) -> None:
    """BAD is GOOD plus a constant, so that all candidates' scores are equal whatever the normalisers round to."""
    generator = torch.Generator().manual_seed(7)
    good = (20 + torch.randn(300, 64, generator=generator)).bfloat16()
    bad = (good.float() + torch.arange(300).unsqueeze(1) / 8).float()
    sampling = make_sampling_tensors(300, temperature=0)
    lowest = (good.float() >= good.float().amax(1, keepdim=True) - sampling.margin.unsqueeze(1)).byte().argmax(1)
    if mode in ("mask", -20.0):  # otherwise other tokens score as much
        assert run_sample(implementation, good, bad, sampling, outside_head=mode).token.equal(lowest)
    pair = torch.tensor([[0.0, -1.0]]), torch.tensor([[0.5, -0.5]])
    assert run_sample(implementation, *pair, make_sampling_tensors(1, temperature=0), outside_head=mode).token == 0


@pytest.mark.skipif("cpp" not in IMPLEMENTATIONS, reason="the C++ extension does not run")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_implementations_agree_on_ties_of_rounded_logits(mode: OutsideHead, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(9)
    good, bad = ((20 + 2 * torch.randn(4000, 40, generator=generator)).to(dtype) for _ in range(2))
    for settings in (dict(temperature=0), dict(temperature=0, contrast_strength=0.5), dict(temperature=0.7, top_k=1)):
        sampling = make_sampling_tensors(4000, **settings)
        wanted, got = (run_sample(i, good, bad, sampling, outside_head=mode).token for i in IMPLEMENTATIONS)
        assert got.equal(wanted)


@each_implementation
@pytest.mark.parametrize("logprobs", [False, True])
def test_nan_of_bad_is_a_fault_only_if_a_score_needs_it(implementation: str, logprobs: bool) -> None:
    """Log-probabilities do not change which rows can be drawn; one that is undefined is NaN."""
    good = torch.tensor([0.0, -0.5, -1.0, -9.0]).repeat(50, 1)
    sound = torch.tensor([0.3, 0.7, 0.1, 0.0]).repeat(50, 1)
    sampling = make_sampling_tensors(50)
    unread = sampling._replace(contrast_strength=torch.zeros(50))
    for place, is_read in ((3, False), (1, True)):
        bad = sound.clone()
        bad[:, place] = torch.nan
        for mode in MODES:
            call = dict(outside_head=mode, logprobs=logprobs)
            needed = is_read or not isinstance(mode, str)
            drawn = run_sample(implementation, good, bad, sampling, **call)
            wanted = run_sample(implementation, good, sound, sampling, **call).token
            assert drawn.token.equal(torch.full((50,), codes.NAN_BAD) if needed else wanted)
            if logprobs and not needed:
                assert drawn.bad_logprob.isnan().all() and drawn.logprob.isfinite().all()
            drawn = run_sample(implementation, good, bad, unread, **call)
            assert drawn.token.equal(run_sample(implementation, good, None, unread, outside_head=mode).token)
        listed = from_lists(implementation, good, bad, sampling, logprobs).token
        wanted = from_lists(implementation, good, sound, sampling, logprobs).token
        assert listed.equal(torch.full((50,), codes.NAN_BAD) if is_read else wanted)
        listed = from_lists(implementation, good, bad, unread, logprobs).token
        assert listed.equal(from_lists(implementation, good, None, unread, logprobs).token)


@each_implementation
def test_nan_next_to_an_infinity_leaves_log_probabilities_undefined(implementation: str) -> None:
    good, bad = torch.tensor([[0.0, -0.5, -90.0, -90.0]]), torch.tensor([[0.3, 0.7, torch.nan, torch.inf]])
    drawn = run_sample(implementation, good, bad, make_sampling_tensors(1), logprobs=True)
    assert drawn.token in (0, 1) and drawn.logprob.isfinite() and drawn.bad_logprob.isnan()


@each_implementation
def test_a_normaliser_of_bad_that_is_undefined_is_a_fault_only_with_contrast(implementation: str) -> None:
    good, bad = torch.zeros(3, 4), torch.full((3, 4), -torch.inf)
    sampling = make_sampling_tensors(3)
    assert (run_sample(implementation, good, bad, sampling, outside_head=-20.0).token == codes.NAN_BAD).all()
    assert (run_sample(implementation, good, bad, sampling).token >= 0).all()
    unread = sampling._replace(contrast_strength=torch.zeros(3))
    assert (run_sample(implementation, good, bad, unread, outside_head=-20.0).token >= 0).all()
