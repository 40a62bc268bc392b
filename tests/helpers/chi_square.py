"""A chi-square test that compares draws with an exact distribution and fails on any impossible draw."""

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

FALSE_ALARM = 1e-6  # a correct sampler fails one test in a million; with fixed seeds it fails either always or never


def p_value(draws: ArrayLike, probabilities: ArrayLike, pool: float = 20) -> float:
    """Return the chi-square p-value of draws against the distribution that they should follow.

    Args:
        draws: integers [N].
        probabilities: [V].
        pool: cells with a smaller expected count are merged into one.
    Raises:
        AssertionError: a token of probability 0 was drawn.
    """
    probabilities = np.asarray(probabilities, dtype=np.float64)
    counts = np.bincount(np.asarray(draws), minlength=len(probabilities))
    impossible = np.flatnonzero((probabilities == 0) & (counts > 0))
    assert len(impossible) == 0, f"impossible tokens drawn: {impossible}"
    expected = probabilities * counts.sum()
    large = expected >= pool
    observed, expected = counts[large], expected[large]
    rest = counts.sum() - observed.sum(), counts.sum() - expected.sum()
    if rest[1] >= pool:
        observed, expected = np.append(observed, rest[0]), np.append(expected, rest[1])
    elif len(expected):  # too few for a cell of their own: add them to the smallest cell
        smallest = expected.argmin()
        observed, expected = observed.astype(float), expected.copy()
        observed[smallest] += rest[0]
        expected[smallest] += rest[1]
    if len(expected) < 2:
        return 1.0
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))
