"""Is a sample of draws what an exact distribution gives? One p-value, and no forgiveness for the impossible."""

import numpy as np
from scipy import stats

FALSE_ALARM = 1e-6  # a correct sampler fails one test in a million; seeds are fixed, so in practice never or always


def p_value(draws, probabilities, pool=20):
    """Chi-square p-value of integer `draws` [N] against `probabilities` [V]; cells of < `pool` expected are pooled.

    Raises AssertionError where a token of probability 0 was drawn.
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
    elif len(expected):  # too little to stand alone: it joins the smallest cell
        smallest = expected.argmin()
        observed, expected = observed.astype(float), expected.copy()
        observed[smallest] += rest[0]
        expected[smallest] += rest[1]
    if len(expected) < 2:
        return 1.0
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))
