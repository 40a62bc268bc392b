"""Draws against exact distributions, written here from probabilities, as the papers write them."""

import numpy as np
import pytest
import torch

from cdgen_kernels.ops import make_sampling_tensors
from tests.helpers.chi_square import FALSE_ALARM, p_value
from tests.helpers.implementations import IMPLEMENTATIONS, run_sample

V = 200
DRAWS = {"reference": 8_000, "cpp": 40_000}
FASTEST = IMPLEMENTATIONS[-1]


def logits(seed):
    """A Zipf-like pair: BAD is GOOD blurred, so that the contrast has something to find."""
    generator = np.random.default_rng(seed)
    good = -1.3 * np.log(1 + generator.permutation(V)) + generator.normal(0, 0.3, V)
    bad = 0.6 * good + generator.normal(0, 0.7, V)
    return good.astype(np.float32), bad.astype(np.float32)


def softmax(x):
    weight = np.exp(x - x.max())
    return weight / weight.sum()


def nucleus(probabilities, top_p):
    order = np.argsort(-probabilities, kind="stable")
    size = 1 + int((np.cumsum(probabilities[order]) < top_p).sum())
    kept = np.zeros_like(probabilities)
    kept[order[:size]] = probabilities[order[:size]]
    return kept / kept.sum()


def top_k_of(probabilities, k):
    kept = np.where(np.argsort(np.argsort(-probabilities, kind="stable"), kind="stable") < k, probabilities, 0)
    return kept / kept.sum()


def exact(good, bad, alpha=0.1, strength=1.0, weight=1.0, temperature=1.0, top_k=0, top_p=1.0, outside="mask"):
    p_good, p_bad = softmax(good.astype(np.float64) / temperature), softmax(bad.astype(np.float64) / temperature)
    head = p_good >= alpha * p_good.max()
    score = weight * np.log(p_good) - strength * np.log(p_bad)
    if outside == "shifted_good":
        tail = np.log(p_good) - np.log(p_good[~head]).max() + score[head].min()
    else:
        tail = -np.inf if outside == "mask" else outside
    probabilities = softmax(np.where(head, score, tail))
    if top_k:
        probabilities = top_k_of(probabilities, top_k)
    return nucleus(probabilities, top_p) if top_p < 1 else probabilities


CASES = {
    "ancestral": dict(alpha=0.0, strength=0.0),
    "top_k": dict(alpha=0.0, strength=0.0, top_k=7),
    "top_p": dict(alpha=0.0, strength=0.0, top_p=0.8),
    "head": dict(alpha=0.05, strength=0.0),
    "contrastive": dict(alpha=0.01),
    "contrastive, half the strength": dict(alpha=0.01, strength=0.5),
    "contrastive, weighted": dict(alpha=0.01, strength=0.5, weight=1.5),
    "contrastive, cold": dict(alpha=0.01, temperature=0.7),
    "contrastive, hot": dict(alpha=0.05, temperature=1.5),
    "contrastive_top_k": dict(alpha=0.005, top_k=5),
    "contrastive_top_p": dict(alpha=0.005, top_p=0.7),
    "contrastive_tail": dict(alpha=0.05, outside="shifted_good"),
    "constant outside the head": dict(alpha=0.05, outside=-4.0),
}


def draw(implementation, good, bad, case, seed, draws=None):
    draws = draws or DRAWS[implementation]
    names = {"strength": "contrast_strength", "weight": "good_weight"}
    values = {names.get(k, k): v for k, v in case.items() if k != "outside"}
    sampling = make_sampling_tensors(draws, seed=seed, position=3, **values)
    tensors = [torch.from_numpy(x).expand(draws, V) for x in (good, bad)]
    return run_sample(implementation, *tensors, sampling, outside_head=case.get("outside", "mask")).token.numpy()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_exact_distribution(implementation, name):
    good, bad = logits(seed=5)
    draws = draw(implementation, good, bad, CASES[name], seed=11)
    assert p_value(draws, exact(good, bad, **CASES[name])) > FALSE_ALARM


@pytest.mark.parametrize("vary", ["seed", "sequence", "position"])
def test_each_part_of_the_counter_gives_fresh_noise(vary):
    """The stream of one text over its positions, of one position over texts, and over seeds are all fair."""
    good, bad = logits(seed=6)
    draws = DRAWS[FASTEST]
    counter = {"seed": 1, "sequence": 2, "position": 3, vary: torch.arange(draws)}
    sampling = make_sampling_tensors(draws, alpha=0.01, **counter)
    draws = run_sample(FASTEST, *(torch.from_numpy(x).expand(draws, V) for x in (good, bad)), sampling).token
    assert p_value(draws.numpy(), exact(good, bad, alpha=0.01)) > FALSE_ALARM


def test_the_test_finds_small_mistakes():
    """What a cosine of 0.99 passes, this finds: a strength 6 % off, a temperature 3 % off, a head one token short."""
    good, bad = logits(seed=5)
    draws = draw(FASTEST, good, bad, dict(alpha=0.01), seed=11, draws=120_000)
    for mistake in (dict(strength=1.06), dict(temperature=1.03), dict(alpha=0.015)):
        with_mistake = exact(good, bad, **{"alpha": 0.01, **mistake})
        try:
            found = p_value(draws, with_mistake) < FALSE_ALARM
        except AssertionError:  # a token that the mistaken distribution has no room for
            found = True
        assert found, mistake


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_draw_outside_the_head(implementation):
    """At a head of a few tokens exactly none outside it, and every token inside."""
    good, bad = logits(seed=9)
    draws = draw(implementation, good, bad, dict(alpha=0.2), seed=3)
    head = np.flatnonzero(exact(good, bad, alpha=0.2) > 0)
    assert len(head) < 10
    assert np.isin(draws, head).all()
    assert len(np.unique(draws)) == len(head)
