"""Draws against exact distributions, computed here from probabilities, as in the papers."""

from typing import Any

import numpy as np
import pytest
import torch

from cdgen_kernels import make_sampling_tensors
from cdgen_kernels.codes import OutsideHead
from tests.helpers.chi_square import FALSE_ALARM, p_value
from tests.helpers.implementations import IMPLEMENTATIONS, run_sample

V = 200
DRAWS = {"reference": 8_000, "cpp": 40_000}
FASTEST = IMPLEMENTATIONS[-1]


def logits(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return Zipf-like logits of GOOD and BAD [V]. BAD is a blurred GOOD, so that the contrast has an effect."""
    generator = np.random.default_rng(seed)
    good = -1.3 * np.log(1 + generator.permutation(V)) + generator.normal(0, 0.3, V)
    bad = 0.6 * good + generator.normal(0, 0.7, V)
    return good.astype(np.float32), bad.astype(np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    weight = np.exp(x - x.max())
    return weight / weight.sum()


def nucleus(probabilities: np.ndarray, top_p: float) -> np.ndarray:
    order = np.argsort(-probabilities, kind="stable")
    size = 1 + int((np.cumsum(probabilities[order]) < top_p).sum())
    kept = np.zeros_like(probabilities)
    kept[order[:size]] = probabilities[order[:size]]
    return kept / kept.sum()


def top_k_of(probabilities: np.ndarray, k: int) -> np.ndarray:
    kept = np.where(np.argsort(np.argsort(-probabilities, kind="stable"), kind="stable") < k, probabilities, 0)
    return kept / kept.sum()


def exact(
    good: np.ndarray,
    bad: np.ndarray,
    alpha: float = 0.1,
    strength: float = 1.0,
    weight: float = 1.0,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    outside: OutsideHead = "mask",
) -> np.ndarray:
    """Return the exact probabilities [V]."""
    p_good, p_bad = softmax(good.astype(np.float64) / temperature), softmax(bad.astype(np.float64) / temperature)
    is_candidate = p_good >= alpha * p_good.max()
    score = weight * np.log(p_good) - strength * np.log(p_bad)
    if outside == "shifted_good":
        tail = np.log(p_good) - np.log(p_good[~is_candidate]).max() + score[is_candidate].min()
    else:
        tail = -np.inf if outside == "mask" else outside
    probabilities = softmax(np.where(is_candidate, score, tail))
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
    "constant outside the candidates": dict(alpha=0.05, outside=-4.0),
}


def draw(
    implementation: str, good: np.ndarray, bad: np.ndarray, case: dict[str, Any], seed: int, draws: int | None = None
) -> np.ndarray:
    """Draw many tokens from one pair of logits, as one batch."""
    draws = draws or DRAWS[implementation]
    names = {"strength": "contrast_strength", "weight": "good_weight"}
    values = {names.get(k, k): v for k, v in case.items() if k != "outside"}
    sampling = make_sampling_tensors(draws, seed=seed, position=3, **values)
    tensors = [torch.from_numpy(x).expand(draws, V) for x in (good, bad)]
    return run_sample(implementation, *tensors, sampling, outside_head=case.get("outside", "mask")).token.numpy()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("name", CASES)
def test_draws_follow_the_exact_distribution(implementation, name) -> None:
    good, bad = logits(seed=5)
    draws = draw(implementation, good, bad, CASES[name], seed=11)
    assert p_value(draws, exact(good, bad, **CASES[name])) > FALSE_ALARM


@pytest.mark.parametrize("vary", ["seed", "sequence", "position"])
def test_each_part_of_the_counter_gives_independent_noise(vary) -> None:
    """Draws follow the distribution when only the seed, only the sequence or only the position changes."""
    good, bad = logits(seed=6)
    draws = DRAWS[FASTEST]
    counter = {"seed": 1, "sequence": 2, "position": 3, vary: torch.arange(draws)}
    sampling = make_sampling_tensors(draws, alpha=0.01, **counter)
    draws = run_sample(FASTEST, *(torch.from_numpy(x).expand(draws, V) for x in (good, bad)), sampling).token
    assert p_value(draws.numpy(), exact(good, bad, alpha=0.01)) > FALSE_ALARM


def test_the_statistical_test_detects_small_mistakes() -> None:
    """It detects a strength that is 6 % off, a temperature that is 3 % off, and a missing candidate."""
    good, bad = logits(seed=5)
    draws = draw(FASTEST, good, bad, dict(alpha=0.01), seed=11, draws=120_000)
    for mistake in (dict(strength=1.06), dict(temperature=1.03), dict(alpha=0.015)):
        with_mistake = exact(good, bad, **{"alpha": 0.01, **mistake})
        try:
            found = p_value(draws, with_mistake) < FALSE_ALARM
        except AssertionError:  # a token that is impossible under the mistaken distribution
            found = True
        assert found, mistake


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_draws_are_all_candidates_and_cover_them(implementation) -> None:
    """With few candidates, each of them is drawn and no other token is."""
    good, bad = logits(seed=9)
    draws = draw(implementation, good, bad, dict(alpha=0.2), seed=3)
    candidates = np.flatnonzero(exact(good, bad, alpha=0.2) > 0)
    assert len(candidates) < 10
    assert np.isin(draws, candidates).all()
    assert len(np.unique(draws)) == len(candidates)
