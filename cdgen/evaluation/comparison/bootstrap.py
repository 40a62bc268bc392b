"""The paired bootstrap over items, and the variation between training runs.

*Items* are resampled with replacement, with the same resamples for all models, so that the difficulty of an item
cancels in differences. Ulm et al. (2025, arXiv 2510.08245) use 1000 such resamples.

*Training runs* (seeds) are few, and resampling two or three of them says little about others. Resampling both runs and
items would also count the noise of the items about three times (Owen 2007, "The pigeonhole bootstrap"). Instead, the
variance between runs is estimated from the deviations of all runs from the mean of their method, pooled over methods,
with df = number of runs - number of methods. The part of it that is noise of the items is subtracted, because the
bootstrap over items already includes it. Each resample then draws a variance, variance * df / chi²(df), and from it a
normal deviation of each method's mean. Intervals become wider with fewer runs, as those of Student's t do. A method
with one run is assumed to vary as much as the others.

If all methods have the same seeds, the models of a seed may have something in common: their GOOD, or their initial
weights. What they share cancels in differences, so seeds are treated as blocks of a randomised block design. The
variance between seed means, with df = seeds - 1, gives a deviation that all methods share. The variance of what remains
after the means of methods and seeds are removed, with df = (seeds - 1) (methods - 1), gives a deviation of each method.

In simulations with 100 items (tests/evaluation/test_bootstrap.py), 95 % intervals for the difference of two methods
cover the true difference in 94 % to 95 % of the experiments if only items vary, 95 % to 97 % with five runs per method,
95 % to 98 % with three, and 95 % to 99 % with two. The higher figures are for runs that hardly differ.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
POWER = 0.8  # probability of finding a detectable effect
_CHUNK = 4_000_000  # number of counts in memory at once


def item_counts(items: int, resamples: int, rng: np.random.Generator) -> Iterator[Array]:
    """Iterate over bootstrap resamples of items, in chunks of bounded size.

    Args:
        items: number of items n.
        resamples: number of resamples B.
        rng: source of randomness.
    Yields:
        Chunks int64 [b, n]: how often each item occurs in each resample.
    """
    rows = max(1, _CHUNK // items)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        drawn = rng.integers(0, items, (size, items))
        drawn += np.arange(size)[:, None] * items
        yield np.bincount(drawn.ravel(), minlength=size * items).reshape(size, items)


def method_means(values: Array, methods: Array) -> Array:
    """Return the means over the runs of each method.

    Args:
        values: [..., runs, B] or [..., runs, 1].
        methods: index of each run's method, [runs]; each index below the greatest one occurs.
    Returns:
        [..., methods, B].
    """
    means: Array = _averaging(methods) @ values
    return means


def run_noise(
    estimates: Array, draws: Array, methods: Array, rng: np.random.Generator, seeds: Array | None = None
) -> Array:
    """Draw deviations of the methods' means due to the variation between training runs; see the module's docstring.

    Args:
        estimates: value of each run on each task, [tasks, runs].
        draws: resampled values, [tasks, runs, B].
        methods: index of each run's method, [runs].
        rng: source of randomness.
        seeds: index of each run's seed, [runs], if each of several methods has one run of each seed; None otherwise.
    Returns:
        Deviations of the methods' means, [tasks, methods, B]; 0 if no method has more than one run. Across tasks they
        correlate as the deviations of the runs do.
    """
    runs, sizes = len(methods), np.bincount(methods)
    if seeds is None:
        df = runs - len(sizes)
        within = np.eye(runs) - _averaging(methods)[methods]
        return _deviations(within, df, estimates, draws, len(sizes), rng) / np.sqrt(sizes)[:, None]
    number = len(np.unique(seeds))
    of_seeds, of_methods = _averaging(seeds), _averaging(methods)
    shared = _deviations(of_seeds - 1 / runs, number - 1, estimates, draws, 1, rng)
    remainder = np.eye(runs) - of_methods[methods] - of_seeds[seeds] + 1 / runs
    own = _deviations(remainder, (number - 1) * (len(sizes) - 1), estimates, draws, len(sizes), rng)
    # The means over the methods are in the shared part.
    found: Array = (shared + own - own.mean(1, keepdims=True)) / np.sqrt(number)
    return found


def _averaging(groups: Array) -> Array:
    """Return the matrix that averages over the runs of each group, [groups, runs], from each run's group, [runs]."""
    member = groups == np.arange(groups.max() + 1)[:, None]
    averaging: Array = member / member.sum(1, keepdims=True)
    return averaging


def _deviations(
    contrasts: Array, df: int, estimates: Array, draws: Array, columns: int, rng: np.random.Generator
) -> Array:
    """Draw normal deviations with the variance of contrasts of the runs, without the part that is noise of the items.

    Args:
        contrasts: [K, runs]; the sum of their squares, divided by `df`, estimates the variance.
        df: degrees of freedom of that estimate.
        estimates, draws, rng: see :func:`run_noise`.
        columns: number of independent deviations to draw.
    Returns:
        [tasks, columns, B]; 0 if `df` is 0.
    """
    tasks, _, resamples = draws.shape
    if df == 0:
        return np.zeros((tasks, columns, resamples))
    deviations = estimates @ contrasts.T  # [T, K]
    from_items = contrasts @ (draws - estimates[:, :, None])  # [T, K, B]
    between = np.square(deviations).sum(1) / df  # [T]
    within = np.square(from_items).mean(2).sum(1) / df
    share = np.divide(within, between, out=np.ones(tasks), where=between > 0)
    scale = np.sqrt(np.maximum(df / rng.chisquare(df, resamples) - share[:, None], 0))  # [T, B]
    normal = rng.standard_normal((len(contrasts), columns * resamples))
    noise: Array = ((deviations / np.sqrt(df)) @ normal).reshape(tasks, columns, resamples)
    noise *= scale[:, None] * (between > 0)[:, None, None]
    return noise


def interval(draws: Array, confidence: float) -> tuple[float, float]:
    """Return the percentile interval of resampled values [B]."""
    low, high = np.quantile(draws, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def smallest_p_value(resamples: int) -> float:
    """Return the p-value of a method that is better than the baseline in all resamples."""
    return 1 / (resamples + 1)


def p_value(improvements: Array) -> float:
    """Return the one-sided p-value of the hypothesis that there is no improvement.

    Args:
        improvements: resampled improvements over the baseline, [B].
    Returns:
        (1 + number of resamples in which the baseline is better + half of those in which both are equal) / (B + 1).
        The p-value agrees with the percentile interval, and is about 0.5 for models with equal scores. Without an
        effect it is uniform; if equal resamples counted fully, p-values of accuracies would be too large.
    """
    worse, equal = (int(found.sum()) for found in (improvements < 0, improvements == 0))
    return (1 + worse + equal / 2) / (len(improvements) + 1)


def detectable(improvements: Array, estimate: float, level: float) -> float:
    """Return the smallest improvement that would have been found with probability 0.8.

    For a normal distribution this is (z(level) + z(0.8)) * standard error.

    Args:
        improvements: resampled improvements over the baseline, [B].
        estimate: the estimated improvement.
        level: p-value up to which an improvement counts as found.
    """
    critical, missed = np.quantile(improvements - estimate, [level, 1 - POWER])
    return float(0 - critical - missed)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for several hypotheses (Holm 1979), in the same order."""
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1)
    found = np.empty(len(p_values))
    found[order] = corrected
    return [float(one) for one in found]
