"""The rule of the paper's program, written anew, against `outside_head=-20`, on real logits of SmolLM2.

That program takes the head with a strict comparison, divides by the temperature before the mask, adds 1e-10 inside
both logarithms, and gives every token outside the head the constant score -20 (arXiv 2510.08245). What differs here
is that log p_BAD is exact. The 1e-10 raises a token's log p_BAD by log(1 + 1e-10 / p_BAD), so with D the greatest
such step among a row's head tokens the two distributions lie within tanh(D / 2) of each other in total variation:
nothing for a BAD that knows the language, much for one that gives GOOD's tokens probabilities far below 1e-10, as the
first half of a model's layers does. The tolerance is that bound and 1e-6.
"""

import numpy as np
import pytest
import torch

from benchmarks.smollm2 import logits_on_text
from cdgen.errors import InputError
from cdgen_kernels import codes, reference
from cdgen_kernels.ops import make_sampling_tensors
from tests.helpers.chi_square import FALSE_ALARM, p_value
from tests.helpers.implementations import IMPLEMENTATIONS, run_sample


def logits(bad):
    try:
        return logits_on_text(96, bad)
    except InputError as error:
        pytest.skip(str(error))


def the_papers_rule(good, bad, alpha=0.1, strength=1.0, temperature=1.0):
    """float64 probabilities [B, V]"""
    p_good = torch.softmax(good.double() / temperature, -1)
    p_bad = torch.softmax(bad.double() / temperature, -1)
    score = torch.log(p_good + 1e-10) - strength * torch.log(p_bad + 1e-10)
    in_head = p_good > alpha * p_good.max(-1, keepdim=True).values
    return torch.softmax(torch.where(in_head, score, -20.0), -1), in_head


def ours(good, bad, outside, **settings):
    sampling = make_sampling_tensors(good.shape[0], **settings)
    return torch.softmax(reference.contrastive_scores(good, bad, sampling, *outside), -1)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}, {"alpha": 0.01}, {"contrast_strength": 0.5}])
@pytest.mark.parametrize("name", ["dropout", "layers"])
def test_the_constant_of_the_paper(name, settings):
    good, bad = logits(name)
    strength = settings.get("contrast_strength", 1.0)
    others = {name: value for name, value in settings.items() if name != "contrast_strength"}
    paper, in_head = the_papers_rule(good, bad, strength=strength, **others)
    mine = ours(good, bad, (codes.CONSTANT, -20.0), **settings)

    p_bad = torch.softmax(bad.double() / settings.get("temperature", 1.0), -1)
    step = torch.log1p(1e-10 / torch.where(in_head, p_bad, 1)).amax(1) * strength
    bound = torch.tanh(step / 2) + 1e-6
    distance = 0.5 * (paper - mine).abs().sum(1)
    leak = (mine * ~in_head).sum(1)
    print(
        f"{name} {settings}: head {in_head.sum(1).double().mean():.1f} tokens; mass outside it {leak.mean():.1e} "
        f"on average, {leak.max():.1e} at most; distance from the paper's rule {distance.median():.1e} in the median, "
        f"{distance.max():.1e} at most"
    )
    assert (distance <= bound).all()
    if name == "dropout":
        assert (bound < 1e-3).sum() > 60  # of 96 rows, those on which this says much
    assert ((leak - (paper * ~in_head).sum(1)).abs() <= bound).all()

    masked = ours(good, bad, (codes.MASK, 0.0), **settings)
    assert (masked * ~in_head).sum() == 0
    without_leak = torch.where(in_head, mine, 0)
    torch.testing.assert_close(masked, without_leak / without_leak.sum(1, keepdim=True), rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_draws_follow_the_papers_rule(implementation):
    """Real rows, real vocabulary: the distribution drawn from is the paper's."""
    good, bad = logits("dropout")
    draws = {"reference": 60, "cpp": 1500}[implementation]
    for position in (40, 90):
        sampling = make_sampling_tensors(draws, seed=7, position=position)
        pair = (x[position].expand(draws, -1) for x in (good, bad))
        token = run_sample(implementation, *pair, sampling, outside_head=-20).token
        probabilities = the_papers_rule(good[position : position + 1], bad[position : position + 1])[0][0]
        assert p_value(token.numpy(), np.asarray(probabilities)) > FALSE_ALARM
