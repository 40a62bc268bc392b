"""Intervals cover, p-values are uniform without an effect, and a planted effect is found as often as predicted.

Each test simulates many small experiments whose truth is known. The experiments of a block are computed together, with
the same resamples: as models of one task, and as tasks with the same runs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from cdgen.evaluation.comparison import bootstrap
from cdgen.evaluation.comparison.bootstrap import Array
from cdgen.evaluation.metrics import Metric, Table, resampled

METRICS = {
    "accuracy": Metric("accuracy", "mean", {"value": "correct"}),
    "macro accuracy": Metric("accuracy", "macro_mean", {"value": "correct"}),
    "perplexity": Metric("perplexity", "perplexity", {"nll": "nll", "count": "tokens"}, higher_is_better=False),
}
ITEMS, RESAMPLES, BLOCKS, EXPERIMENTS = 100, 600, 10, 1200
LEVEL = 0.05


class Experiment(NamedTuple):
    """A method compared with a baseline."""

    value: float
    draws: Array  # resampled values of the difference, [B]
    truth: float


def normal_cdf(x: float) -> float:
    return float(stats.norm.cdf(x))


def tables(
    metric: Metric, runs: Array, effect: float, spread: float, rng: np.random.Generator, shared: float = 0
) -> list[Table]:
    """Return the scores of a baseline (0) and a method (1) in several training runs each.

    Args:
        metric: the metric.
        runs: method of each run, [R].
        effect: what the method adds to the latent quality of every item.
        spread: standard deviation of the runs' latent quality.
        rng: source of randomness.
        shared: standard deviation of a latent quality that the runs of a seed have in common. Both methods then have
            the same seeds, in the same order.
    """
    # Items are hard for all models, hard for one method, or neither; runs differ as well.
    latent = rng.normal(size=(ITEMS, 1)) + 0.5 * rng.normal(size=(ITEMS, 2))[:, runs]
    latent = latent + effect * runs + spread * rng.normal(size=len(runs))
    if shared:
        latent = latent + shared * np.tile(rng.normal(size=len(runs) // 2), 2)
    group = np.repeat(np.arange(10), ITEMS // 10)
    if metric.kind == "perplexity":
        tokens = np.full(ITEMS, 8)
        nll = tokens[:, None] * (4 - 0.2 * latent) + rng.normal(size=latent.shape)
        return [{"nll": one, "tokens": tokens} for one in nll.T]
    correct = rng.normal(size=latent.shape) < latent + 0.4
    return [{"correct": one, "group": group} for one in correct.T]


def truth(metric: Metric, effect: float, spread: float) -> float:
    """Return the expected difference between method and baseline; of perplexities, for many items and runs."""
    if metric.kind == "perplexity":
        return float(np.exp(4 - 0.2 * effect) - np.exp(4)) * float(np.exp((0.2 * spread) ** 2 / 2))
    scale = np.sqrt(1 + 1 + 0.25 + spread**2)
    return normal_cdf((0.4 + effect) / scale) - normal_cdf(0.4 / scale)


def experiments(
    metric: Metric, seeds: tuple[int, int], effect: float, spread: float, shared: float = 0, blocks: bool = False
) -> Iterator[Experiment]:
    """Iterate over simulated experiments with the given numbers of runs of the baseline and the method.

    With `blocks`, the comparison knows which runs have the same seed.
    """
    rng = np.random.default_rng(5)
    runs = np.repeat([0, 1], seeds)
    numbers = np.concatenate([np.arange(count) for count in seeds]) if blocks else None
    expected = truth(metric, effect, np.hypot(spread, shared))
    for _ in range(BLOCKS):
        simulated = [tables(metric, runs, effect, spread, rng, shared) for _ in range(EXPERIMENTS // BLOCKS)]
        flat = [table for each in simulated for table in each]
        draws = resampled(metric, flat, bootstrap.item_counts(ITEMS, RESAMPLES, rng))
        values = resampled(metric, flat, [np.ones((1, ITEMS))])
        values, draws = values.reshape(-1, len(runs)), draws.reshape(-1, len(runs), RESAMPLES)
        both = bootstrap.method_means(draws, runs) + bootstrap.run_noise(values, draws, runs, rng, numbers)
        means = bootstrap.method_means(values[:, :, None], runs)[:, :, 0]
        for value, draw in zip(means[:, 1] - means[:, 0], both[:, 1] - both[:, 0], strict=True):
            yield Experiment(float(value), draw, expected)


def coverage(found: list[Experiment]) -> float:
    limits = [bootstrap.interval(one.draws, 0.95) for one in found]
    return float(np.mean([low <= one.truth <= high for one, (low, high) in zip(found, limits, strict=True)]))


@pytest.mark.parametrize("name", METRICS)
def test_intervals_cover_and_p_values_are_uniform_when_items_are_resampled(name: str) -> None:
    found = list(experiments(METRICS[name], (1, 1), effect=0, spread=0))
    assert coverage(found) == pytest.approx(0.95, abs=0.02)
    p_values = np.array([bootstrap.p_value(one.draws) for one in found])
    for level in (0.05, 0.1, 0.25):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=4 * np.sqrt(level / EXPERIMENTS))
    assert p_values.mean() == pytest.approx(0.5, abs=0.03)
    if name == "perplexity":  # p-values of accuracies have steps
        assert stats.kstest(p_values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize(("name", "seeds"), [("accuracy", (3, 3)), ("accuracy", (2, 4)), ("perplexity", (3, 3))])
def test_intervals_cover_and_p_values_are_uniform_with_several_runs(name: str, seeds: tuple[int, int]) -> None:
    found = list(experiments(METRICS[name], seeds, effect=0, spread=0.3))
    assert coverage(found) == pytest.approx(0.95, abs=0.02)
    p_values = np.array([bootstrap.p_value(one.draws) for one in found])
    for level in (0.05, 0.1, 0.25):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=5 * np.sqrt(level / EXPERIMENTS))
    assert stats.kstest(p_values, "uniform").pvalue > 1e-4


@pytest.mark.parametrize("name", ["accuracy", "perplexity"])
@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_what_the_runs_of_a_seed_share_cancels(name: str, shared: float) -> None:
    found = list(experiments(METRICS[name], (4, 4), effect=0, spread=0.3, shared=shared, blocks=True))
    assert coverage(found) == pytest.approx(0.95, abs=0.025)
    p_values = np.array([bootstrap.p_value(one.draws) for one in found])
    for level in (0.05, 0.1, 0.25):
        assert np.mean(p_values <= level) == pytest.approx(level, abs=5 * np.sqrt(level / EXPERIMENTS))
    if shared:  # without blocks, what the runs share widens the intervals
        assert coverage(list(experiments(METRICS[name], (4, 4), effect=0, spread=0.3, shared=shared))) > 0.985


@pytest.mark.parametrize(("seeds", "spread"), [((2, 2), 0.3), ((3, 1), 0.3), ((5, 5), 0.0)])
def test_intervals_of_few_or_equal_runs_cover_at_least_what_they_state(seeds: tuple[int, int], spread: float) -> None:
    # Without the subtraction of the noise of the items, those of five equal runs cover 99.4 %.
    assert 0.93 < coverage(list(experiments(METRICS["accuracy"], seeds, 0, spread))) < 0.985


@pytest.mark.parametrize(("seeds", "spread", "effect"), [((1, 1), 0.0, 0.57), ((5, 5), 0.3, 0.6)])
def test_a_planted_effect_is_covered_and_found_with_the_predicted_power(
    seeds: tuple[int, int], spread: float, effect: float
) -> None:
    found = list(experiments(METRICS["accuracy"], seeds, effect, spread))
    assert coverage(found) == pytest.approx(0.95, abs=0.02)
    power = np.mean([bootstrap.p_value(one.draws) <= LEVEL for one in found])
    smallest = np.mean([bootstrap.detectable(one.draws, one.value, LEVEL) for one in found])
    z = stats.norm.ppf([1 - LEVEL, bootstrap.POWER]).sum()
    predicted = normal_cdf(found[0].truth / smallest * z - stats.norm.ppf(1 - LEVEL))
    assert power == pytest.approx(predicted, abs=0.04)


def test_item_counts_are_resamples_in_chunks_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bootstrap, "_CHUNK", 300)
    chunks = list(bootstrap.item_counts(ITEMS, 1000, np.random.default_rng(0)))
    assert {chunk.size for chunk in chunks} == {300, 100}
    counts = np.concatenate(chunks)
    assert counts.shape == (1000, ITEMS) and (counts.sum(1) == ITEMS).all()
    # Counts of a binomial distribution; the variance of a count is 1 - 1 / n.
    assert stats.chisquare(counts.sum(0)).pvalue > 1e-4
    assert counts.var() == pytest.approx(1 - 1 / ITEMS, rel=0.02)


def test_runs_that_do_not_differ_add_no_noise() -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(1, 1, 50)).repeat(4, axis=1)
    noise = bootstrap.run_noise(np.zeros((1, 4)), draws, np.array([0, 0, 1, 1]), rng)
    assert noise.shape == (1, 2, 50) and not noise.any()
    assert not bootstrap.run_noise(np.zeros((1, 2)), draws[:, :2], np.array([0, 1]), rng).any()


def test_noise_of_several_tasks_correlates_as_the_runs_do() -> None:
    deviations = np.array([1.0, -1.0, 2.0, -2.0])
    estimates = np.stack([deviations, -deviations])  # a run that is good at one task is bad at the other
    noise = bootstrap.run_noise(
        estimates, estimates[:, :, None].repeat(200, 2), np.array([0, 0, 1, 1]), np.random.default_rng(0)
    )
    np.testing.assert_allclose(noise[0], -noise[1])
    assert abs(np.corrcoef(np.sign(noise[0]))[0, 1]) < 0.3  # the methods are independent


def test_p_values() -> None:
    assert bootstrap.p_value(np.full(999, 1.0)) == pytest.approx(0.001)
    assert bootstrap.p_value(np.full(999, -1.0)) == 1
    assert bootstrap.p_value(np.zeros(999)) == pytest.approx(0.5, abs=0.001)


def test_detectable_effect_of_a_normal_distribution() -> None:
    draws = stats.norm.ppf(np.linspace(0.0005, 0.9995, 1000), loc=3, scale=2)
    assert bootstrap.detectable(draws, 3, 0.05) == pytest.approx(2 * (1.645 + 0.842), rel=0.01)


def test_holm() -> None:
    assert bootstrap.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert bootstrap.holm([0.9, 0.6]) == [1, 1]
    assert bootstrap.holm([]) == []
