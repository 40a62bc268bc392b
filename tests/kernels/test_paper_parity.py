"""A rewrite of the rule in the paper's program against `outside_head=-20`, on real logits of SmolLM2.

The program selects candidates with a strict comparison, divides by the temperature before the mask, adds 1e-10 inside
both logarithms, and gives every token that is not a candidate the constant score -20 (arXiv 2510.08245). The ops differ
in one respect: their log p_BAD is exact. The 1e-10 raises a token's log p_BAD by log(1 + 1e-10 / p_BAD). If D is the
largest such increase among the candidates of a row, the total variation distance of the two distributions is at most
tanh(D / 2). This is negligible for a BAD that knows the language, and large for one that gives GOOD's tokens
probabilities far below 1e-10, as the first half of a model's layers does. The tolerance is this bound plus 1e-6.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.smollm2 import logits_on_text
from cdgen.errors import InputError
from cdgen_kernels import codes, make_sampling_tensors, reference
from tests.helpers.chi_square import FALSE_ALARM, p_value
from tests.helpers.implementations import IMPLEMENTATIONS, run_sample


def logits(bad: str) -> tuple[Tensor, Tensor]:
    try:
        return logits_on_text(96, bad)
    except InputError as error:
        pytest.skip(str(error))


def paper_rule(
    good: Tensor, bad: Tensor, alpha: float = 0.1, strength: float = 1.0, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return the probabilities, float64 [B, V], and which tokens are candidates, bool [B, V]."""
    p_good = torch.softmax(good.double() / temperature, -1)
    p_bad = torch.softmax(bad.double() / temperature, -1)
    score = torch.log(p_good + 1e-10) - strength * torch.log(p_bad + 1e-10)
    is_candidate = p_good > alpha * p_good.max(-1, keepdim=True).values
    return torch.softmax(torch.where(is_candidate, score, -20.0), -1), is_candidate


def ours(good: Tensor, bad: Tensor, outside: tuple[int, float], **settings: float) -> Tensor:
    """Return the probabilities of the reference, float64 [B, V]."""
    sampling = make_sampling_tensors(good.shape[0], **settings)
    return torch.softmax(reference.contrastive_scores(good, bad, sampling, *outside), -1)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"alpha": 0.01}, {"contrast_strength": 0.5}])
@pytest.mark.parametrize("name", ["dropout", "layers"])
@pytest.mark.slow
def test_the_constant_score_matches_the_paper(name, settings) -> None:
    good, bad = logits(name)
    strength = settings.get("contrast_strength", 1.0)
    others = {name: value for name, value in settings.items() if name != "contrast_strength"}
    paper, is_candidate = paper_rule(good, bad, strength=strength, **others)
    mine = ours(good, bad, (codes.CONSTANT, -20.0), **settings)

    p_bad = torch.softmax(bad.double() / settings.get("temperature", 1.0), -1)
    increase = torch.log1p(1e-10 / torch.where(is_candidate, p_bad, 1)).amax(1) * strength
    bound = torch.tanh(increase / 2) + 1e-6
    distance = 0.5 * (paper - mine).abs().sum(1)
    leak = (mine * ~is_candidate).sum(1)
    print(
        f"{name} {settings}: {is_candidate.sum(1).double().mean():.1f} candidates on average; probability of all other "
        f"tokens {leak.mean():.1e} on average, {leak.max():.1e} at most; distance from the paper's rule "
        f"{distance.median():.1e} in the median, {distance.max():.1e} at most"
    )
    assert (distance <= bound).all()
    if name == "dropout":
        assert (bound < 1e-3).sum() > 60  # the bound is tight enough to be informative on most of the 96 rows
    assert ((leak - (paper * ~is_candidate).sum(1)).abs() <= bound).all()

    masked = ours(good, bad, (codes.MASK, 0.0), **settings)
    assert (masked * ~is_candidate).sum() == 0
    without_leak = torch.where(is_candidate, mine, 0)
    torch.testing.assert_close(masked, without_leak / without_leak.sum(1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.slow
def test_draws_follow_the_rule_of_the_paper(implementation) -> None:
    """Compare draws from real logits over the whole vocabulary with the probabilities of the paper."""
    good, bad = logits("dropout")
    draws = {"reference": 60, "cpp": 1500}[implementation]
    for position in (40, 90):
        sampling = make_sampling_tensors(draws, seed=7, position=position)
        pair = (x[position].expand(draws, -1) for x in (good, bad))
        token = run_sample(implementation, *pair, sampling, outside_head=-20).token
        probabilities = paper_rule(good[position : position + 1], bad[position : position + 1])[0][0]
        assert p_value(token.numpy(), np.asarray(probabilities)) > FALSE_ALARM
